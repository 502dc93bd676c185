"""Whole runs through the command line: records, resuming bit for bit, and failing without loss."""

import importlib.util
import json
import math
import os
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from conftest import TINY, aga_config

from data import DataError
from exp.harness import cli
from exp.harness.config import Experiment, complete, load_settings
from exp.harness.device import peak_memory
from exp.harness.errors import ConfigError
from exp.harness.folder import RunFolder
from exp.harness.limits import Limits
from exp.harness.objective import Objective
from exp.harness.task import task_named, tasks, train_function
from exp.harness.toml import to_toml
from exp.jobs.finished import finished_run
from exp.jobs.queue import Job, state
from model import build_model
from optimizer import build_optimizer
from optimizer.signum import Signum

CONFIGS = sorted(Path("config").glob("*.toml"))
AGA = {"grokking": "config/lrp_grok_ars2_neo_aga_400e.toml",
       "cifar": "config/lrp_cifar10_ars2_neo_aga_20e.toml",
       "wikitext2": "config/mini_wikitext2_ars2_neo_aga.toml"}


def launch(task, output, *options, config=None, epochs=3):
    tiny = [word for override in [*TINY[task], f"experiment.epochs={epochs}"]
            for word in ("--set", override)]
    config = config or AGA.get(task) or aga_config(task, output)
    arguments = ["--config", str(config), "--output", str(output), "--device", "cpu"]
    return cli.launch(task_named(task), train_function(task), [*arguments, *tiny, *options])


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(folder):
    return [{k: v for k, v in line.items() if k not in ("seconds", "peak_memory_bytes")}
            for line in lines(folder)]


def checkpoint(folder, name="latest.pt"):
    return torch.load(folder / name, weights_only=True)


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_in_full_and_trains_two_steps(path, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("exp.harness.run.plot_curves", lambda *_: None)  # a third of the time
    settings = tomllib.loads(path.read_text())
    task = settings["experiment"]["task"]
    settings = complete(settings, task_named(task))
    model = build_model(settings["model"], **dict.fromkeys(task_named(task).sizes, 114))
    optimizer = build_optimizer(settings["optimizer"], model)
    routed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(routed) == sorted(map(id, model.parameters()))
    assert launch(task, tmp_path / "run", config=path, epochs=1) == 0
    (line,) = lines(tmp_path / "run")
    assert line["step"] >= 2
    assert math.isfinite(line["eval_loss"])


def test_the_best_epoch_is_tested_once_on_data_that_did_not_choose_it(tiny_data, tmp_path):
    from exp.cifar.train import TASK, evaluate
    from exp.harness.build import build

    folder = tmp_path / "run"
    assert launch("cifar", folder, "--set", "data.validation=0.2", epochs=4) == 0
    best = json.loads((folder / "summary.json").read_text())["best"]
    built = build(tomllib.loads((folder / "config.toml").read_text()), TASK)
    built.model.load_state_dict(checkpoint(folder, "best.pt")["model"])
    found = evaluate(built.objective, built.data, "test")
    assert best["test_accuracy"] == found["eval_accuracy"]
    assert best["test_loss"] == pytest.approx(found["eval_loss"], rel=1e-5)
    assert launch("cifar", folder, "--resume", "--set", "data.validation=0.2", epochs=4) == 0
    again = json.loads((folder / "summary.json").read_text())["best"]
    assert again == pytest.approx(best, rel=1e-5)


def test_a_logger_gets_settings_and_every_line(tmp_path, monkeypatch, capsys):
    options = ["--set", 'experiment.logger="trackio"']
    find, calls, installed = importlib.util.find_spec, [], []
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: (
        installed if name == "trackio" and installed else
        None if name == "trackio" else find(name, *rest)))
    assert launch("grokking", tmp_path / "none", *options, epochs=1) == 2
    assert "trackio is not installed: pip install trackio" in capsys.readouterr().err
    installed.append("trackio")
    fake = SimpleNamespace(__name__="trackio", init=lambda **run: calls.append(run),
                           log=calls.append, finish=lambda: calls.append("finished"))
    monkeypatch.setitem(sys.modules, "trackio", fake)
    assert launch("grokking", tmp_path / "run", *options, epochs=2) == 0
    started, *logged, finished = calls
    assert started["config"]["optimizer.name"] == "ars2_neo" and finished == "finished"
    assert [line["epoch"] for line in logged] == [1, 2]
    assert logged[1]["eval_accuracy"] == lines(tmp_path / "run")[1]["eval_accuracy"]
    fake.log = None  # a logger that fails does not end a run
    assert launch("grokking", tmp_path / "again", *options, epochs=1) == 0
    assert "trackio.log failed, logging to it stops" in capsys.readouterr().err


def test_a_resumed_run_writes_its_events_again_on_either_axis(tmp_path, monkeypatch):
    import torch.utils.tensorboard as tensorboard

    options = ["--set", "experiment.tensorboard=true", "--set", "optimizer={name='adamw', sam={}}"]
    for epochs, steps in ((2, 0), (3, 4)):
        monkeypatch.setattr(tensorboard, "SummaryWriter", writer := MagicMock())
        assert launch("grokking", tmp_path / "run", *options, "--resume", epochs=epochs) == 0
        assert [(Path(call.args[0]).name, call.kwargs["purge_step"])
                for call in writer.call_args_list] == [
                    ("tensorboard", steps // 2 + 1), ("over_evaluations", 2 * steps + 1)]


def test_what_a_run_needs_is_asked_for_before_its_folder_is_touched(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: (
        None if name == "tensorboard" else find(name, *rest)))
    monkeypatch.setenv("CXX", "no-compiler")
    for key, words in (("tensorboard", "pip install tensorboard"),
                       ("compile", "there is no C++ compiler no-compiler")):
        assert launch("grokking", tmp_path / "run", "--set", f"experiment.{key}=true") == 2
        assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_may_leave_the_test_split_alone(tiny_data, tmp_path):
    folder = tmp_path / "run"
    options = ["--set", "data.validation=0.2", "--set"]
    assert launch("cifar", folder, *options, "experiment.test=false", epochs=1) == 0
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert best and not [name for name in best if name.startswith("test")]
    assert launch("cifar", folder, "--resume", *options, "experiment.test=true", epochs=1) == 0
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert math.isfinite(best["test_loss"])


def test_evaluation_of_text_is_the_same_however_many_rows_at_a_time(tiny_data, monkeypatch):
    from exp.harness.build import build
    from exp.wikitext2.train import EVAL_TOKENS, TASK, evaluate

    settings = load_settings(Path(AGA["wikitext2"]), TINY["wikitext2"], TASK)
    built = build(settings, TASK)
    found = []
    for tokens in (1, 100, 2**12):
        monkeypatch.setitem(EVAL_TOKENS, "cpu", tokens)
        found.append(evaluate(built.objective, built.data))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("task", tasks())
def test_a_run_folder_holds_what_the_contract_says(task, tiny_data, tmp_path, capsys):
    folder = tmp_path / "run"
    assert launch(task, folder, "--set", "experiment.tensorboard=true") == 0
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.toml", "run.json", "metrics.jsonl", "summary.json", "curves.png",
                     "latest.pt", "best.pt", "tensorboard"}
    assert not [name for name in names if name.endswith(".tmp")]
    record = lines(folder)
    assert [line["epoch"] for line in record] == [1, 2, 3]
    primary, metrics = task_named(task).primary, {m.name for m in task_named(task).metrics}
    for line in record:
        assert {"step", "gradient_evaluations", "train_loss", "eval_loss", "lr", "seconds",
                "peak_memory_bytes", "diagnostics"} | metrics <= line.keys()
        assert line["gradient_evaluations"] >= line["step"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["epochs"] == 3
    metric = primary.name
    assert summary["best"][metric] == primary.best([line[metric] for line in record])
    best = checkpoint(folder, "best.pt")
    assert best[metric] == summary["best"][metric]
    facts = json.loads((folder / "run.json").read_text())
    assert {"exp.harness": 1, f"exp.{task}.train": 1, "optimizer.ars2_neo": 1}.items() <= (
        facts["recipes"].items())
    assert all(len(checksum) == 64 for checksum in facts["data"].values()) and facts["data"]
    matrix, rest = facts["parameter_groups"]
    assert (matrix["track"], rest["track"]) == ("matrix", "adamw")
    assert matrix["elements"] + rest["elements"] == facts["parameters"]
    resolved = tomllib.loads((folder / "config.toml").read_text())
    assert resolved["optimizer"]["eps"] == matrix["eps"] == 1e-8
    assert set(summary["milestones"]) == set(task_named(task).milestones)
    printed = capsys.readouterr().out
    kept, *_ = finished_run(folder, task_named(task))
    events = b"".join(path.read_bytes() for path in (folder / "tensorboard").rglob("events*"))
    for name in metrics:
        assert name in printed and name in kept["curve"]
        assert f"over_evaluations/{name}".encode() in events
    assert b"optimizer.adaptive_sync" in events and b"final/" in events


@pytest.mark.parametrize("name", tasks())
def test_a_task_is_complete(name):
    """What every task declares beside its training script, and that all of it fits together."""
    task = task_named(name)
    assert task.name == name and train_function(name).__module__ == f"exp.{name}.train"
    assert task.scales["full"] == {} and task.scales["tiny"]
    assert all(metric.name.startswith("eval_") and metric.label for metric in task.metrics)
    assert {task.metric(metric).mode for metric, _ in task.milestones.values()} <= {"max", "min"}
    for config in {task.config, task.published}:
        for scale in task.scales:
            assert load_settings(config, task.scale(scale), task)["experiment"]["task"] == name
    goal = task.table.get("tuning", {})
    assert task.metric(goal.get("metric", task.primary.name)) in task.metrics
    with pytest.raises(ConfigError, match=f"task {name} has no metric"):
        task.metric("eval_nothing")
    with pytest.raises(ConfigError, match="no task 'nothing'"):
        task_named("nothing")


@pytest.mark.parametrize("task", tasks())
def test_resuming_after_an_epoch_is_bit_exact(task, tiny_data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    constant = ("--set", "schedule={name = 'constant'}")
    assert launch(task, whole, *constant, epochs=4) == 0
    assert launch(task, parts, *constant, epochs=2) == 0
    torch.rand(7)  # whatever the process drew in between must not matter
    assert launch(task, parts, "--resume", *constant, epochs=4) == 0
    assert timeless(whole) == timeless(parts)
    for part in ("model", "optimizer", "objective", "rng"):
        assert same(checkpoint(whole)[part], checkpoint(parts)[part])


@pytest.mark.parametrize("task", tasks())
def test_an_interrupt_in_mid_epoch_writes_a_checkpoint_and_resumes_bit_exactly(
        task, tiny_data, tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert launch(task, whole) == 0
    press_ctrl_c_once(monkeypatch)
    assert launch(task, parts) == 130
    assert "--resume" in capsys.readouterr().err
    assert json.loads((parts / "summary.json").read_text())["status"] == "interrupted"
    assert 0 < checkpoint(parts)["position"]["step"] < checkpoint(whole)["position"]["step"]
    assert launch(task, parts, "--resume") == 0
    assert timeless(whole) == timeless(parts)
    assert same(checkpoint(whole)["model"], checkpoint(parts)["model"])
    assert same(checkpoint(whole)["optimizer"], checkpoint(parts)["optimizer"])
    assert json.loads((parts / "summary.json").read_text())["status"] == "completed"


def test_a_run_without_checkpoints_is_the_same_and_is_not_resumed(
        tiny_data, tmp_path, monkeypatch, capsys):
    folder, options = tmp_path / "run", ["--set", "data.validation=0.2"]
    without = [*options, "--set", "experiment.checkpoints=false"]
    monkeypatch.setattr("exp.harness.checkpoint.CHECKPOINT_SECONDS", 0)
    assert launch("cifar", tmp_path / "saved", *options, epochs=1) == 0
    assert launch("cifar", folder, *without, epochs=1) == 0
    assert not list(folder.glob("*.pt")) and timeless(folder) == timeless(tmp_path / "saved")
    best, expected = (json.loads((run / "summary.json").read_text())["best"]
                      for run in (folder, tmp_path / "saved"))
    assert best == expected and "test_accuracy" in best  # of weights that stayed in memory
    press_ctrl_c_once(monkeypatch)
    assert launch("cifar", folder, *without, "--overwrite", epochs=2) == 130
    assert "--overwrite (checkpoints = false) restarts" in capsys.readouterr().err
    assert not list(folder.glob("*.pt"))
    before = (folder / "metrics.jsonl").read_bytes(), (folder / "summary.json").read_bytes()
    assert launch("cifar", folder, *without, "--resume", epochs=2) == 2
    assert capsys.readouterr().err == ("error: [experiment] checkpoints = false: such a run cannot "
                                       "be resumed; --overwrite starts it anew\n")
    assert before == ((folder / "metrics.jsonl").read_bytes(),
                      (folder / "summary.json").read_bytes())
    job = Job("cifar", Path(AGA["cifar"]), 1, tmp_path / "job", ("experiment.checkpoints=false",))
    assert job.work().command[-1] == job.work().again[-1] == "--overwrite"


def press_ctrl_c_once(monkeypatch):
    """In the second or third step."""
    first = Objective._first

    def press_ctrl_c(self, batch):
        if self.gradient_evaluations > 2 and not press_ctrl_c.pressed:
            press_ctrl_c.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return first(self, batch)

    press_ctrl_c.pressed = False
    monkeypatch.setattr(Objective, "_first", press_ctrl_c)


def test_an_interrupt_in_mid_epoch_keeps_the_averages_of_what_came_before_it(tmp_path,
                                                                             monkeypatch):
    """Of the instruments and of clipping, with micro-batches, smoothed labels and one cycle."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [word for option in (
        'experiment.diagnostics=["updates"]', "experiment.diagnostics_every=1",
        "data.batch_size=10", "experiment.clip_norm=0.2", "experiment.accumulation=3",
        "experiment.label_smoothing=0.1", "schedule={name = 'one_cycle', momentum = 'cycle'}")
        for word in ("--set", option)]
    assert launch("grokking", whole, *options) == 0
    press_ctrl_c_once(monkeypatch)
    assert launch("grokking", parts, *options) == 130
    assert checkpoint(parts)["position"]["batch"] > 0
    assert launch("grokking", parts, "--resume", *options) == 0
    for expected, found in zip(timeless(whole), timeless(parts), strict=True):
        for line in (expected, found):
            assert line["diagnostics"].pop("updates/seconds") > 0
            assert line["gradient_norm_matrix"] > 0 and line["gradient_norm_adamw"] > 0
            assert 0 < line["clipped_share_matrix"] <= 1
        assert expected == found


def test_a_checkpoint_of_before_instruments_and_processes_were_in_it_resumes(tmp_path):
    folder = tmp_path / "run"
    assert launch("grokking", folder, epochs=1) == 0
    state = checkpoint(folder)
    del state["measured"]
    state["rng"] = state["rng"][0]
    del state["record"], state["settings"]["experiment"]["precision"]
    del state["settings"]["schedule"]["warmup_epochs"]
    torch.save(state, folder / "latest.pt")
    assert launch("grokking", folder, "--resume", epochs=2) == 0
    assert launch("grokking", tmp_path / "whole", epochs=2) == 0
    assert timeless(folder) == timeless(tmp_path / "whole")


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    """SIGKILL of a real process at an arbitrary moment, checkpoints after every epoch."""
    code = ("import sys; import exp.harness.checkpoint as c; c.CHECKPOINT_SECONDS = 0;"
            "from exp.harness.cli import launch; from exp.grokking.train import TASK, train;"
            "sys.exit(launch(TASK, train))")
    killed = tmp_path / "killed"
    options = ["--config", AGA["grokking"], "--device", "cpu"]
    for override in [*TINY["grokking"], "experiment.epochs=400"]:
        options += ["--set", override]
    process = subprocess.Popen([sys.executable, "-c", code, *options, "--output", str(killed)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline and not (killed / "latest.pt").exists():
        time.sleep(0.02)
    time.sleep(0.5)
    process.kill()
    process.wait()
    assert not (killed / "summary.json").exists()
    begun = checkpoint(killed)["position"]["epoch"]
    assert 0 < begun < 400
    assert launch("grokking", killed, "--resume", epochs=begun + 20) == 0
    assert launch("grokking", tmp_path / "whole", epochs=begun + 20) == 0
    assert timeless(killed) == timeless(tmp_path / "whole")
    assert same(checkpoint(killed)["model"], checkpoint(tmp_path / "whole")["model"])
    assert same(checkpoint(killed)["optimizer"], checkpoint(tmp_path / "whole")["optimizer"])


def test_a_folder_with_a_run_is_refused_and_left_as_it_is(tiny_data, tmp_path, capsys):
    folder = tmp_path / "run"
    assert launch("grokking", folder, epochs=1) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert launch("grokking", folder, epochs=2) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert launch("grokking", folder, "--overwrite", epochs=2) == 0
    assert len(lines(folder)) == 2


def test_resuming_a_completed_run_without_its_checkpoint_does_not_wipe_its_record(tmp_path, capsys):
    folder = tmp_path / "run"
    assert launch("grokking", folder, epochs=1) == 0
    (folder / "latest.pt").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert launch("grokking", folder, "--resume", epochs=2) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    summary = folder / "summary.json"
    summary.write_text(summary.read_text().replace("completed", "interrupted"))
    assert launch("grokking", folder, "--resume", epochs=2) == 0  # that one begins anew
    assert len(lines(folder)) == 2


def test_the_recorded_command_can_be_run_again(tmp_path, monkeypatch):
    given = ["--set", 'schedule.name="cosine"', "--output", "a folder"]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    assert launch("grokking", tmp_path / "run", epochs=1) == 0
    command = json.loads((tmp_path / "run" / "run.json").read_text())["command"]
    assert shlex.split(command)[3:] == given


def test_two_generations_of_a_processor_have_two_names(monkeypatch):
    from exp.harness import facts

    monkeypatch.setattr(facts.os, "cpu_count", lambda: 2)
    names = []
    for flags in ("fpu avx2", "fpu avx2 avx512f avx512_bf16", "fpu", ""):
        found = {"model name": "AMD EPYC", "flags": flags}
        monkeypatch.setattr(facts, "_cpuinfo", found.get)
        names.append(facts.device_name(torch.device("cpu")))
    assert names == ["CPU: AMD EPYC, 2 cores, avx2", "CPU: AMD EPYC, 2 cores, avx512_bf16",
                     "CPU: AMD EPYC, 2 cores", "CPU: AMD EPYC, 2 cores"]


def test_peak_memory_is_in_bytes_whatever_the_system_counts_in(monkeypatch):
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=7))
    for system, expected in (("linux", 7 * 1024), ("darwin", 7)):
        monkeypatch.setattr(sys, "platform", system)
        assert peak_memory(torch.device("cpu")) == expected


@pytest.mark.parametrize("override", [
    "optimizer.spam=1", "optimizer.betas=[0.9, 1.5]", "data.fraction=1.5", "model.d_model=0",
    "schedule.warmup_epochs=-1.0", "data.batch_size=0", "optimizer.rho=-1.0"])
def test_a_bad_setting_writes_nothing(override, tiny_data, tmp_path, capsys):
    assert launch("grokking", tmp_path / "run", "--set", override) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: [")
    assert override.split("=")[0].split(".")[1] in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_missing_data_is_one_clear_message(tmp_path, monkeypatch, capsys, tiny_data):
    monkeypatch.setenv("ARS_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("data.cifar10.download", refuse)
    assert launch("cifar", tmp_path / "run") == 2
    assert "put the folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def refuse(*arguments):
    raise DataError("put the folder there")


def test_cuda_is_refused_where_there_is_none(tmp_path, capsys, tiny_data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert launch("grokking", tmp_path / "run", "--device", "cuda") == 2
    assert "CUDA" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused_and_nothing_is_overwritten(
        damage, tiny_data, tmp_path, capsys):
    folder = tmp_path / "run"
    assert launch("grokking", folder, epochs=1) == 0
    path = folder / "latest.pt"
    path.write_bytes(path.read_bytes()[:2000] if damage is None else damage)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert launch("grokking", folder, "--resume", epochs=2) == 2
    assert "damaged" in capsys.readouterr().err
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


def middles_of_records(path):
    """Where a byte of each record of a zip file is: what pads them says nothing."""
    whole, places = path.read_bytes(), []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            lengths = struct.unpack_from("<HH", whole, info.header_offset + 26)  # name, extra
            places.append(info.header_offset + 30 + sum(lengths) + info.compress_size // 2)
    return places


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tiny_data, tmp_path, capsys):
    folder = tmp_path / "run"
    assert launch("grokking", folder, epochs=1) == 0
    path = folder / "latest.pt"
    whole = bytearray(path.read_bytes())
    for place in middles_of_records(path)[::3]:
        damaged = whole.copy()
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert launch("grokking", folder, "--resume", epochs=2) == 2, place
        assert "damaged" in capsys.readouterr().err
    shutil.copy(folder / "best.pt", path)
    assert launch("grokking", folder, "--resume", epochs=2) == 2
    assert "it has no settings" in capsys.readouterr().err


def test_a_run_that_other_code_resumes_says_so_and_keeps_both(tiny_data, tmp_path, capsys):
    folder = tmp_path / "run"
    assert launch("grokking", folder, epochs=1) == 0
    first = json.loads((folder / "run.json").read_text())
    assert "resumed_from" not in first
    assert launch("grokking", folder, "--resume", epochs=2) == 0
    assert "warning" not in capsys.readouterr().err
    facts = json.loads((folder / "run.json").read_text())
    assert [past["command"] for past in facts["resumed_from"]] == [first["command"]]
    facts["sources"]["model/grokking_transformer.py"] = "other"
    (folder / "run.json").write_text(json.dumps(facts))
    assert launch("grokking", folder, "--resume", epochs=3) == 0
    assert "warning: model/grokking_transformer.py changed" in capsys.readouterr().err
    facts = json.loads((folder / "run.json").read_text())
    digests = [past["sources"]["model/grokking_transformer.py"] for past in facts["resumed_from"]]
    assert digests == [first["sources"]["model/grokking_transformer.py"], "other"]
    settings = tomllib.loads((folder / "config.toml").read_text())
    config = folder / "again.toml"
    config.write_text(to_toml(settings))
    job = Job("grokking", config, settings["experiment"]["seed"], folder)
    assert state(job) == "finished"  # other code is shown, only another RECIPE counts
    facts["resumed_from"][0]["recipes"] = {"model.grokking_transformer": 2}
    (folder / "run.json").write_text(json.dumps(facts))
    assert state(job) == "outdated"


def test_what_ran_part_of_the_first_epoch_is_kept_too(tmp_path):
    facts = {"command": "first", "sources": {"model/a.py": "1"}}
    RunFolder(tmp_path).begin({}, facts)
    (tmp_path / "latest.pt").write_bytes(b"")
    RunFolder(tmp_path, resume=True).begin({}, {**facts, "command": "second"})
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept["command"] == "second"
    assert [past["command"] for past in kept["resumed_from"]] == ["first"]


def test_wrappers_in_another_order_are_another_optimizer(tiny_data, tmp_path, capsys):
    folder, config = tmp_path / "run", tmp_path / "wrapped.toml"
    settings = tomllib.loads(Path("config/lrp_grok_adamw_600e.toml").read_text())
    plain = settings["optimizer"]
    for wrappers in (("sam", "lookahead"), ("lookahead", "sam")):
        settings["optimizer"] = {**plain, **{name: {} for name in wrappers}}
        config.write_text(to_toml(settings))
        option = ["--resume"] if folder.exists() else []
        status = launch("grokking", folder, *option, config=config, epochs=2)
        assert status == (2 if option else 0)
    assert "innermost first: ['sam', 'lookahead'] -> ['lookahead', 'sam']" in (
        capsys.readouterr().err)


def test_bad_places_and_sizes_are_refused_before_anything_is_written(tiny_data, tmp_path, capsys,
                                                                    monkeypatch):
    def refused(*words, output=tmp_path / "run", options=(), task="grokking", **settings):
        assert launch(task, output, *options, **settings) == 2
        said = capsys.readouterr().err
        assert all(word in said for word in words), said
        assert not (tmp_path / "run").exists()

    file = tmp_path / "file"
    file.write_text("")
    refused("cannot create the run folder", output=file / "run")
    refused("--output", "too long", output=tmp_path / ("x" * 300))
    refused("[model] the input has 3 tokens, more than sequence_length 2",
            options=["--set", "model.sequence_length=2"])
    config = tmp_path / "lion.toml"
    settings = tomllib.loads(Path("config/lrp_grok_adamw_600e.toml").read_text())
    settings["optimizer"] = {"name": "pytorch_optimizer:Lion", "lr": -1.0}
    config.write_text(to_toml(settings))
    refused("[optimizer]", "-1", config=config)
    monkeypatch.setattr("data.CACHE", file)
    refused("cannot read or write the data", "file", task="wikitext2",
            options=["--set", "data.sequence_length=14"])


def test_what_diverges_keeps_the_weights_of_its_best_epoch(tiny_data, tmp_path):
    from exp.grokking.train import TASK, evaluate
    from exp.harness.build import build

    folder = tmp_path / "run"
    assert launch("grokking", folder, "--set", "optimizer.lr=1e4", "--set",
                  "optimizer.adamw.lr=1e4", "--set", "schedule.warmup_epochs=30",
                  "--set", "model.d_model=8", epochs=60) == 3
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert best and not (folder / "latest.pt").exists()
    built = build(tomllib.loads((folder / "config.toml").read_text()), TASK)
    built.model.load_state_dict(checkpoint(folder, "best.pt")["model"])
    assert evaluate(built.objective, built.data)["eval_accuracy"] == best["eval_accuracy"]


@pytest.mark.parametrize("routing", [{}, {"routing": "role"}], ids=["alone", "beside AdamW"])
def test_a_schedule_free_optimizer_is_evaluated_at_its_averaged_weights(routing, tiny_data,
                                                                       tmp_path):
    from exp.grokking.train import TASK, evaluate
    from exp.harness.build import build

    folder, config = tmp_path / "run", tmp_path / "free.toml"
    settings = tomllib.loads(Path("config/lrp_grok_adamw_600e.toml").read_text())
    settings["optimizer"] = {"name": "pytorch_optimizer:ScheduleFreeAdamW", "lr": 0.01,
                             **routing}
    config.write_text(to_toml(settings))
    assert launch("grokking", folder, config=config, epochs=3) == 0
    built = build(tomllib.loads((folder / "config.toml").read_text()), TASK)
    state = checkpoint(folder)
    built.model.load_state_dict(state["model"])
    built.optimizer.load_state_dict(state["optimizer"])
    logged = lines(folder)[-1]["eval_loss"]
    assert evaluate(built.objective, built.data)["eval_loss"] == pytest.approx(logged)
    schedule_free, *_ = getattr(built.optimizer, "parts", [built.optimizer])
    schedule_free.train()  # where the next step would be taken: elsewhere
    other = evaluate(built.objective, built.data)["eval_loss"]
    assert other != pytest.approx(logged, rel=1e-6)
    assert launch("grokking", folder, "--resume", config=config, epochs=4) == 0
    whole = tmp_path / "whole"
    assert launch("grokking", whole, config=config, epochs=4) == 0
    assert timeless(folder) == timeless(whole)


def test_an_average_is_evaluated_with_batch_norm_statistics_of_its_own(tiny_data, tmp_path):
    """Those of torch's update_bn. Training is that of the run without, and resumes to the bit."""
    from exp.cifar.train import TASK, evaluate
    from exp.harness.build import build

    plain, whole, folder = (tmp_path / name for name in ("plain", "whole", "resumed"))
    sgd = "optimizer={name='sgd', lr=0.05%s}"
    constant = ("--set", "schedule={}", "--set")
    averaged = (*constant, sgd % ", ema={horizon=2.0}")
    assert launch("cifar", plain, *constant, sgd % "") == 0
    assert launch("cifar", whole, *averaged) == 0
    assert launch("cifar", folder, *averaged, epochs=2) == 0
    assert launch("cifar", folder, "--resume", *averaged) == 0
    assert timeless(folder) == timeless(whole)
    assert same(checkpoint(folder)["optimizer"], checkpoint(whole)["optimizer"])
    last, other = lines(whole)[-1], lines(plain)[-1]
    assert last["evaluated_weights"] == "EMA" and "evaluated_weights" not in other
    assert last["train_loss"] == other["train_loss"] and last["eval_loss"] != other["eval_loss"]
    built = build(tomllib.loads((whole / "config.toml").read_text()), TASK)
    built.model.load_state_dict(checkpoint(whole)["model"])
    assert evaluate(built.objective, built.data)["eval_loss"] == pytest.approx(last["eval_loss"])
    for buffer in built.model.buffers():
        buffer.zero_()
    torch.optim.swa_utils.update_bn((images for images, _ in built.data.train.epoch(2)),
                                    built.model)
    found = evaluate(built.objective, built.data)["eval_loss"]
    assert found == pytest.approx(last["eval_loss"], rel=1e-6)


def test_resuming_with_other_settings_is_refused(tiny_data, tmp_path, capsys):
    folder = tmp_path / "run"
    assert launch("grokking", folder, epochs=1) == 0
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert launch("grokking", folder, "--resume", "--set", "optimizer.lr=0.5") == 2
    assert "lr: 0.001 -> 0.5" in capsys.readouterr().err
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("ending", ["schedule.name='cosine'", "schedule.weight_decay='cosine'"])
def test_more_epochs_do_not_stretch_a_schedule_that_ends(ending, tmp_path, capsys):
    folder, whole, ends = tmp_path / "run", tmp_path / "whole", ("--set", ending)
    assert launch("grokking", folder, *ends, epochs=2) == 0
    assert launch("grokking", folder, "--resume", *ends, epochs=3) == 2
    assert "--set schedule.period_epochs=2" in capsys.readouterr().err
    ends += ("--set", "schedule.period_epochs=2")
    assert launch("grokking", folder, "--resume", *ends, epochs=3) == 0
    assert launch("grokking", whole, *ends, epochs=3) == 0
    assert timeless(folder) == timeless(whole)


def test_divergence_is_recorded_as_such(tiny_data, tmp_path, capsys):
    folder = tmp_path / "run"
    status = launch("grokking", folder, "--set", "optimizer.adamw.lr=1e30",
                    "--set", "optimizer.lr=1e30")
    assert status == 3
    assert json.loads((folder / "summary.json").read_text())["status"] == "diverged"
    assert "diverged" in capsys.readouterr().err
    for line in lines(folder):
        assert line["train_loss"] is None or math.isfinite(line["train_loss"])


def test_a_nan_in_the_state_that_signs_hide_is_divergence(tiny_data, tmp_path, capsys, monkeypatch):
    update = Signum.update_group

    def poisoned(self, params, group):
        params[0].grad.view(-1)[0] = math.nan
        update(self, params, group)

    monkeypatch.setattr(Signum, "update_group", poisoned)
    folder, config = tmp_path / "run", tmp_path / "signum.toml"
    settings = tomllib.loads(Path(AGA["grokking"]).read_text())
    settings["optimizer"] = {"name": "signum"}
    config.write_text(to_toml(settings))
    assert launch("grokking", folder, config=config) == 3
    assert "state of the optimizer is nan in epoch 1" in capsys.readouterr().err
    assert math.isfinite(lines(folder)[0]["train_loss"])


def test_a_decomposition_that_refuses_what_is_not_finite_is_divergence(tiny_data, tmp_path, capsys):
    folder = tmp_path / "run"
    config = tmp_path / "svd.toml"
    settings = tomllib.loads(Path(AGA["grokking"]).read_text())
    settings["optimizer"] = {"name": "low_rank_muon", "lr": 1e30}
    config.write_text(to_toml(settings))
    assert launch("grokking", folder, config=config) == 3
    assert json.loads((folder / "summary.json").read_text())["status"] == "diverged"
    assert "diverged: linalg." in capsys.readouterr().err


def test_a_decomposition_that_fails_later_leaves_the_weights_of_the_best_epoch(
        tmp_path, monkeypatch):
    first = Objective._first

    def fail(self, batch):
        if self.gradient_evaluations > 8:
            raise torch.linalg.LinAlgError("not finite")
        return first(self, batch)

    monkeypatch.setattr(Objective, "_first", fail)
    assert launch("grokking", tmp_path, epochs=20) == 3
    best = json.loads((tmp_path / "summary.json").read_text())["best"]
    assert checkpoint(tmp_path, "best.pt")["eval_accuracy"] == best["eval_accuracy"]


def test_a_compiled_run_is_the_same_run_and_its_curvature_can_be_measured(tiny_data, tmp_path,
                                                                         monkeypatch):
    eager = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda self: eager(self, backend="aot_eager"))  # no C++ compiler needed
    monkeypatch.setenv("CXX", sys.executable)
    for name in ("false", "true"):
        assert launch("grokking", tmp_path / name, "--set", f"experiment.compile={name}", "--set",
                      'experiment.diagnostics=["sharpness"]', epochs=2) == 0
    for plain, compiled in zip(lines(tmp_path / "false"), lines(tmp_path / "true"), strict=True):
        for key in ("train_loss", "eval_loss", "eval_accuracy"):
            assert compiled[key] == pytest.approx(plain[key], rel=1e-4)
        measured = [line["diagnostics"] for line in (plain, compiled)]
        assert any("sharpness" in key for key in measured[0])
        assert measured[0].keys() == measured[1].keys()


def test_a_full_disk_keeps_the_last_checkpoint(tiny_data, tmp_path, capsys):
    folder = tmp_path / "run"
    assert launch("grokking", folder, epochs=1) == 0
    before = (folder / "latest.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The operating system itself refuses to let a file grow to the size of the checkpoint.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 1000, limits[1]))
    try:
        assert launch("grokking", folder, "--resume", epochs=2) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert "cannot write" in error
    assert "Traceback" not in error and "intact" not in error
    assert (folder / "latest.pt").read_bytes() == before
    assert not list(folder.glob(".*tmp"))
    assert launch("grokking", folder, "--resume", epochs=2) == 0


def test_a_run_ends_with_the_epoch_that_spends_its_gradient_evaluations(tiny_data, tmp_path):
    run = tmp_path / "run"
    sync = ["optimizer.adaptive_sync=false", "optimizer.k=1"]
    options = [word for item in sync for word in ("--set", item)]
    assert launch("grokking", run, *options, "--set", "experiment.max_evaluations=5") == 0
    assert [line["gradient_evaluations"] for line in lines(run)] == [4, 8]  # two steps an epoch
    assert launch("grokking", run, *options, "--set", "experiment.max_evaluations=12",
                  "--resume") == 0
    assert [line["gradient_evaluations"] for line in lines(run)] == [4, 8, 12]
    assert launch("grokking", run, *options, "--set", "experiment.max_evaluations=8",
                  "--resume") == 2
    assert launch("grokking", run, "--set", "experiment.max_evaluations=0", "--overwrite") == 2


def test_a_resumed_run_may_not_end_before_its_checkpoint(tmp_path, capsys):
    run = tmp_path / "run"
    assert launch("grokking", run) == 0
    kept = {path.name: path.read_bytes() for path in run.iterdir()}
    for options, epochs in (([], 2), (["--set", "experiment.stop_at=0.0"], 3)):
        assert launch("grokking", run, "--resume", *options, epochs=epochs) == 2
        assert "but the checkpoint is past it" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == kept


def test_limits_of_a_resumed_run_are_those_of_one_that_always_had_them():
    def limits(accuracies, batches=0, **settings):
        followed = Limits(Experiment("grokking", 9, **settings), task_named("grokking").primary)
        followed.resume(({"epoch": n, "eval_accuracy": x, "gradient_evaluations": 2 * n}
                         for n, x in enumerate(accuracies, 1)), batches)
        return followed

    assert limits([0.9, 0.9, 0.9, 0.96], stop_at=0.95, hold=3).held == 1
    assert not limits([0.9, 0.9, 0.9, 0.96], stop_at=0.95, hold=3).ended
    assert limits([0.9] * 4, stop_at=0.9, hold=2, linger=2).ended
    assert not limits([0.9] * 3, 1, stop_at=0.9, hold=2, linger=2).ended
    assert limits([0.1] * 9).ended and limits([0.1] * 2, max_evaluations=3).ended
    for accuracies, batches, settings in (
            ([0.1] * 10, 0, {}), ([0.1] * 9, 1, {}), ([0.1] * 3, 0, {"max_evaluations": 3}),
            ([0.9] * 5, 0, {"stop_at": 0.9, "hold": 2, "linger": 2})):
        with pytest.raises(ConfigError, match="the checkpoint is past it"):
            limits(accuracies, batches, **settings)


def test_seconds_of_training_are_without_the_pass_for_batch_norm(tiny_data, tmp_path, monkeypatch):
    now = [0.0]

    def average(self, batches):
        now[0] += 100.0

    monkeypatch.setattr(Objective, "average_statistics", average)
    monkeypatch.setattr("exp.harness.run.time", SimpleNamespace(perf_counter=lambda: now[0]))
    ema = ("--set", "optimizer={name='sgd', lr=0.05, ema={horizon=2.0}}")
    assert launch("grokking", tmp_path, *ema, epochs=2) == 0
    assert now[0] == 200.0 and [line["seconds"] for line in lines(tmp_path)] == [0.0, 0.0]


def test_ctrl_c_while_the_last_checkpoint_is_written_ends_nothing(tmp_path, monkeypatch):
    save = RunFolder.save_checkpoint

    def pressed(self, name, state):
        if name == "latest.pt":
            signal.raise_signal(signal.SIGINT)
        save(self, name, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", pressed)
    monkeypatch.setattr("exp.harness.checkpoint.CHECKPOINT_SECONDS", 1e9)
    assert launch("grokking", tmp_path, epochs=1) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "completed"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_torchrun_continues_only_what_the_same_command_began(tmp_path, monkeypatch, capsys):
    def command(name, attempt):
        file = f"/tmp/torchelastic_x/{name}/attempt_{attempt}/0/error.json"
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))

    run = tmp_path / "run"
    command("none_a", 0)
    assert launch("grokking", run, epochs=2) == 0
    before = lines(run)
    command("none_b", 1)  # its first attempt was refused, this one is, too
    assert launch("grokking", run, epochs=3) == 2
    assert "holds a run (completed)" in capsys.readouterr().err and lines(run) == before
    assert launch("grokking", run, "--overwrite", epochs=1) == 0  # the first one got nowhere
    assert lines(run)[0]["seconds"] != before[0]["seconds"]
    begun = lines(run)
    command("none_b", 2)
    assert launch("grokking", run, "--overwrite", epochs=2) == 0
    assert lines(run)[:1] == begun and len(lines(run)) == 2
    assert launch("grokking", run, "--set", "experiment.checkpoints=false", epochs=1) == 0
    assert len(lines(run)) == 1 and not (run / "latest.pt").exists()


def test_stop_at_ends_the_run_early(tiny_data, tmp_path):
    assert launch("grokking", tmp_path / "run", "--set", "experiment.stop_at=0.0") == 0
    assert len(lines(tmp_path / "run")) == 1
    assert launch("grokking", tmp_path / "run", "--set", "experiment.stop_at=0.0",
                  "--resume") == 0
    assert len(lines(tmp_path / "run")) == 1
    for folder, epochs in (("whole", 4), ("parts", 2), ("parts", 4)):  # it goes on after that
        assert launch("grokking", tmp_path / folder, "--set", "experiment.stop_at=0.0", "--set",
                      "experiment.hold=2", "--set", "experiment.linger=1", "--resume",
                      epochs=epochs) == 0
        assert len(lines(tmp_path / folder)) == min(epochs, 3)


def test_seed_option_changes_the_run_and_the_default_folder(tiny_data, tmp_path):
    assert launch("grokking", tmp_path / "a", "--seed", "1", epochs=1) == 0
    assert launch("grokking", tmp_path / "b", "--seed", "2", epochs=1) == 0
    assert launch("grokking", tmp_path / "c", "--seed", "1", epochs=1) == 0
    assert timeless(tmp_path / "a") == timeless(tmp_path / "c")
    assert timeless(tmp_path / "a") != timeless(tmp_path / "b")


def test_a_wrapper_doubles_the_evaluations_and_resumes_bit_exactly(tiny_data, tmp_path):
    muon, sam = "config/lrp_grok_muon_400e.toml", ("--set", "optimizer.sam={rho = 0.1}")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert launch("grokking", whole, *sam, config=muon, epochs=4) == 0
    assert launch("grokking", parts, *sam, config=muon, epochs=2) == 0
    assert launch("grokking", parts, "--resume", *sam, config=muon, epochs=4) == 0
    assert timeless(whole) == timeless(parts)
    assert same(checkpoint(whole)["model"], checkpoint(parts)["model"])
    assert lines(whole)[-1]["gradient_evaluations"] == 2 * lines(whole)[-1]["step"]
    assert json.loads((whole / "run.json").read_text())["optimizer"] == "SAM"


def test_bf16_trains(tiny_data, tmp_path):
    assert launch("cifar", tmp_path / "run", "--set", "experiment.precision='bf16'",
                  epochs=1) == 0
    assert math.isfinite(lines(tmp_path / "run")[0]["eval_loss"])


def test_a_metrics_line_cut_off_by_a_crash_is_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert folder.metrics() == [{"epoch": 1}, {"epoch": 2}]


