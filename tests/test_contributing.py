"""A new optimizer, data set or model is one file, a new task or paper one folder, a new metric two
lines of its task: CONTRIBUTING's examples, carried out in a copy of the project."""

import json
import multiprocessing
import os
import re
import runpy
import shutil
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

PAGE = Path("CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
STATEMENT = re.search(r"## Add a statement.*?```python\n(.*?)```", PAGE, flags=re.DOTALL)
DATA, MODEL, TASK, METRIC = (re.findall(r"```(?:python|toml)\n(.*?)```", section, flags=re.DOTALL)
                             for section in re.split(r"\n## ", PAGE)
                             if re.match("Add a (data set|model|task|metric)\n", section))
TABLE = re.search(r"## Add a paper's table.*?```toml\n(.*?)```", PAGE, flags=re.DOTALL)


def copy_of_the_project(folder, code):
    for name in ("optimizer", "model", "data", "exp", "tests", "config"):
        shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "cache"))
    shutil.copy("pyproject.toml", folder)
    (folder / "optimizer" / "normalized_sgd.py").write_text(code, encoding="utf-8")


SERVER = multiprocessing.get_context("forkserver")  # the libraries are imported once, for all runs
SERVER.set_forkserver_preload(["torch._dynamo", "matplotlib.pyplot", "pytest"])


def run(folder, *arguments):
    """What `python *arguments` says in a copy of the project: returncode, stdout, stderr."""
    logs = folder / "stdout.log", folder / "stderr.log"
    process = SERVER.Process(target=interpreter, args=(folder, arguments, logs))
    process.start()
    process.join()
    said = (log.read_text(encoding="utf-8") for log in logs)
    return SimpleNamespace(returncode=process.exitcode, stdout=next(said), stderr=next(said))


def interpreter(folder, arguments, logs):
    """Be `python *arguments`, in a process of its own."""
    for number, log in enumerate(logs, 1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    here = Path(__file__).parents[1]
    sys.path[:] = [str(folder), *(path for path in sys.path
                                  if Path(path) not in (here, here / "tests"))]
    os.chdir(folder)
    del sys.modules[__name__]
    assert not {"exp", "optimizer", "model", "data", "conftest"} & sys.modules.keys()
    flag, sys.argv = arguments[0], list(arguments)
    if flag == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif flag == "-c":
        exec(arguments[1], {"__name__": "__main__"})
    else:
        runpy.run_path(flag, run_name="__main__")


def test_the_example_is_tested_listed_and_trained_with_no_other_edit(tmp_path):
    copy_of_the_project(tmp_path, textwrap.dedent(EXAMPLE.group(1)))
    tested = run(tmp_path, "-m", "pytest", "-q", "tests/test_optimizers.py",
                 "tests/test_golden.py", "--write-golden", "-k", "normalized_sgd")
    assert tested.returncode == 0, tested.stdout
    assert (tmp_path / "tests" / "golden" / "normalized_sgd.json").exists()
    assert int(re.search(r"(\d+) passed", tested.stdout).group(1)) >= 9
    listed = run(tmp_path, "-m", "optimizer")
    assert re.search(r"normalized_sgd +1 +0 +Normalized SGD, Hazan et al. 2015", listed.stdout)
    found = run(tmp_path, "-c", "from exp.tune.arms import all_arms, arm_named;"
                " print('normalized_sgd' in all_arms(), arm_named('normalized_sgd', 9).axes)")
    assert re.search(r"True .*'lr': Range", found.stdout), found.stderr
    benchmarked = run(tmp_path, "-c", "import exp.bench.collection as c; c.TASKS = {k: (v[0], ("
                      "*v[1], 'experiment.epochs=1', 'data.p=11')) for k, v in c.TASKS.items()"
                      " if k == 'grokking'}; print('normalized_sgd' in c.collection(),"
                      " c.run_jobs([j := c.job('normalized_sgd', 'grokking', c.Path('out'))]),"
                      " c.result(j)['status'])")
    assert re.search(r"True .*: 0} completed", benchmarked.stdout), benchmarked.stderr
    config = (tmp_path / "config" / "lrp_grok_adamw_600e.toml").read_text(encoding="utf-8")
    head = config.split("[optimizer]")[0]
    (tmp_path / "new.toml").write_text(head + '[optimizer]\nname = "Normalized-SGD"\nlr = 0.1\n')
    trained = run(tmp_path, "-m", "exp.grokking.train", "--config", "new.toml", "--device", "cpu",
                  "--set", "experiment.epochs=1", "--set", "data.p=11", "--output", "run")
    assert trained.returncode == 0, trained.stderr
    assert "epoch" in trained.stdout


def test_mistakes_in_the_file_are_found_by_name(tmp_path):
    code = textwrap.dedent(EXAMPLE.group(1))
    code = code.replace('SEARCH_SPACE = {"lr"', 'SEARCH_SPACE = {"rate"')
    code = code.replace('1 - group["lr"] * group["weight_decay"]', "1")
    copy_of_the_project(tmp_path, code)
    tested = run(tmp_path, "-m", "pytest", "-q", "tests/test_optimizers.py",
                 "-k", "normalized_sgd")
    failed = set(re.findall(r"^FAILED \S+::(\w+)\[", tested.stdout, flags=re.MULTILINE))
    assert failed == {"test_the_file_documents_itself_and_its_declared_cost_is_measured",
                      "test_every_constructor_argument_has_an_effect",
                      "test_zero_gradient_only_shrinks_by_the_decay"}, tested.stdout
    assert "rate" in tested.stdout
    assert "['weight_decay']" in tested.stdout


def test_a_table_of_a_new_paper_is_its_own_folder_and_nothing_else(tmp_path):
    copy_of_the_project(tmp_path, textwrap.dedent(EXAMPLE.group(1)))
    paper = tmp_path / "exp" / "papers" / "new"
    paper.mkdir()
    (paper / "paper.toml").write_text('title = "A new paper"\nnote = "What it says."\n')
    (paper / "tables.toml").write_text(TABLE.group(1))
    (paper / "claims.toml").write_text("""
[[claim]]
id = "new-1"
says = "Muon is better than AdamW"
table = "two-rules"
row = "Muon"
against = "AdamW"
measure = "lead"
comparator = ">"
value = 0
unit = "%"
""")
    made = run(tmp_path, "-m", "exp.reproduce", "two-rules", "--scale", "full", "--seeds", "1")
    assert made.returncode == 0, made.stderr
    page = (tmp_path / "outputs" / "paper" / "two-rules.md").read_text()
    assert re.search(r"\| Muon +\| 1 +\|", page) and "new-1" in page
    verdicts = (tmp_path / "outputs" / "paper" / "verdicts.md").read_text()
    assert "## A new paper\n\nWhat it says.\n\n### Modular addition, two rules" in verdicts
    tested = run(tmp_path, "-m", "pytest", "-q", "tests/test_reproduce.py", "-k",
                 "every_claim or every_row")
    assert tested.returncode == 0, tested.stdout


def test_a_statement_is_one_file(tmp_path):
    copy_of_the_project(tmp_path, textwrap.dedent(EXAMPLE.group(1)))
    folder = tmp_path / "exp" / "papers" / "ars2_neo" / "statements"
    (folder / "decay_fits.py").write_text(STATEMENT.group(1), encoding="utf-8")
    measured = run(tmp_path, "-m", "exp.theory", "decay_fits", "--seeds", "2")
    forecast, verdict = measured.stdout.splitlines(keepends=True)
    assert forecast == "1 to run: 1 never timed\n"
    assert re.match("decay_fits: (holds|does not hold|inconclusive)", verdict), measured.stderr
    page = (tmp_path / "outputs" / "theory" / "decay_fits.md").read_text(encoding="utf-8")
    assert page.startswith("# AdamW fits modular addition sooner with weight decay\n\nSource: an")
    assert "thresholds written before the run: the value of a seed is the training loss" in page
    assert re.search(r"\| AdamW +\| 0.0 +\| [0-9.]+ \[", page)
    again = run(tmp_path, "-m", "exp.theory", "--render")
    assert again.stdout == verdict, again.stderr
    assert (tmp_path / "outputs" / "theory" / "decay_fits.md").read_text(encoding="utf-8") == page
    listed = run(tmp_path, "-m", "exp.theory", "--list")
    assert re.search(r"decay_fits +AdamW fits modular addition", listed.stdout), listed.stderr


def add_the_task(folder):
    """The data set, the model and the task of CONTRIBUTING, in a copy of the project."""
    copy_of_the_project(folder, textwrap.dedent(EXAMPLE.group(1)))
    (folder / "data" / "majority.py").write_text(DATA[0], encoding="utf-8")
    (folder / "model" / "bag_of_tokens.py").write_text(MODEL[0], encoding="utf-8")
    script = (folder / "exp" / "grokking" / "train.py").read_text(encoding="utf-8")
    script = script.replace("from data.modular import Modular, modular",
                            "from data.majority import Majority, majority")
    script = script.replace("data: Modular", "data: Majority")
    script, replaced = re.subn(r"TASK = Task\(.*?\n\n", f"{TASK[0]}\n", script, count=1,
                               flags=re.DOTALL)
    assert replaced and " modular" not in script.split('"""', 2)[2]
    (folder / "exp" / "majority").mkdir()
    for name, text in (("__init__.py", ""), ("train.py", script), ("task.toml", TASK[1])):
        (folder / "exp" / "majority" / name).write_text(text, encoding="utf-8")
    (folder / "config" / "majority_adamw.toml").write_text(TASK[2], encoding="utf-8")


def test_a_new_task_model_and_data_set_are_their_own_files_and_nothing_else(tmp_path):
    add_the_task(tmp_path)
    tested = run(tmp_path, "-m", "pytest", "-q", *(f"tests/test_{name}.py" for name in (
        "models", "data", "config", "objective", "diagnostics", "runs")),
        "-k", "majority or bag_of_tokens")
    assert tested.returncode == 0, tested.stdout
    assert int(re.search(r"(\d+) passed", tested.stdout).group(1)) >= 11
    tuned = run(tmp_path, "-c", "from exp.tune.terms import *; print(terms_of(task_named("
                "'majority'), dict.fromkeys(('target', 'cap', *AMOUNTS))))")
    assert "'main_target': 0.9" in tuned.stdout, tuned.stderr
    trained = run(tmp_path, "-m", "exp.majority.train", "--config", "config/majority_adamw.toml")
    assert trained.returncode == 0, trained.stderr
    assert re.search(r"best eval_accuracy +1 ", trained.stdout), trained.stdout


def test_a_new_metric_is_written_in_its_task_alone(tmp_path):
    add_the_task(tmp_path)
    path = tmp_path / "exp" / "majority" / "train.py"
    script = path.read_text(encoding="utf-8")
    script = re.sub(r"    return classification.evaluate\(.*\n", METRIC[0], script)
    script = script.replace("primary=True),))", "primary=True),\n" + METRIC[1].rstrip(",\n") + "))")
    path.write_text(script, encoding="utf-8")
    tested = run(tmp_path, "-m", "pytest", "-q", "tests/test_runs.py",
                 "-k", "majority and (contract or complete)")
    assert tested.returncode == 0 and "2 passed" in tested.stdout, tested.stdout
    code = """
import json
from pathlib import Path
import exp.harness.plots as plots
from exp.harness.cli import launch
from exp.harness.task import task_named, train_function
from exp.reproduce.plan import Table
from exp.reproduce.yardstick import Yardstick
from exp.tune.terms import AMOUNTS, terms_of

shown = []
panel = plots._panel
plots._panel = lambda axes, *given: (panel(axes, *given), shown.append(axes.get_ylabel()))
launch(task_named("majority"), train_function("majority"),
       ["--config", "config/majority_adamw.toml", "--output", "run",
        "--set", "experiment.epochs=2"])
goal = terms_of(task_named("majority"), dict.fromkeys(("target", "cap", *AMOUNTS)))
table = Table("t", "T", "majority", "AdamW", (), {}, {}, published_metric="eval_error")
by = Yardstick.of(table, "published")
print(json.dumps([shown, goal["metric"], goal["mode"], by.metric.name, by.metric.mode, by.scale]))
"""
    toml = tmp_path / "exp" / "majority" / "task.toml"
    toml.write_text(toml.read_text().replace("target = 0.9", 'metric = "eval_error"\ntarget = 0.1'))
    (tmp_path / "check.py").write_text(code)
    checked = run(tmp_path, "check.py")
    assert checked.returncode == 0, checked.stderr
    *_, last = checked.stdout.splitlines()
    assert json.loads(last) == [["loss (nats)", "accuracy", "error"], "eval_error", "min",
                                "eval_error", "min", 100.0]
