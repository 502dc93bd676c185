"""Every command answers --help and mistyped options before it imports torch, in a blink."""

import importlib
import os
import subprocess
import sys

import pytest

COMMANDS = ["optimizer", *(f"exp.{name}" for name in (
    "grokking.train", "cifar.train", "wikitext2.train", "ladder.train", "runs", "theory",
    "landscape", "bench", "bench.collection", "reproduce", "tune", "tune.find_lr", "tune.path",
    "site", "papers.ladder.analysis", "papers.survey.meta_train")), "tests.chaos"]


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_are_read_before_torch_is_imported(command, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    for arguments, status in ((["--help"], 0), (["--no-such-option"], 2)):
        done = subprocess.run([sys.executable, "-m", command, *arguments], text=True,
                              capture_output=True, check=False,
                              env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert done.returncode == status, done.stderr
        assert f"usage: python -m {command}" in done.stdout + done.stderr


@pytest.mark.parametrize(("command", "arguments", "lines"), [
    ("exp.theory", ("warm_up",), ["warm_up: never timed", "1 to run: 1 never timed"]),
    ("exp.landscape", ("--function", "beale", "--optimizers", "adamw"), ["beale: ", "1 to run: "]),
    ("exp.bench", ("sharding", "smoke"), ["sharding: never", "smoke: never", "2 to run: 2 never"]),
    ("exp.bench.collection", ("muon",), ["muon grokking: ", "muon cifar: ", "2 to run: "]),
    ("exp.tune", ("grokking", "--optimizers", "sgd", "--studies", "2"),
     ["sgd study 1: never timed", "sgd study 2: never timed", "2 to run: 2 never timed"]),
    ("exp.tune.path", ("muon", "--scale", "M", "--from", "S"),
     ["muon S tuning trial*, at most 14 runs: never",
      "muon M tuning x1_rate*, at most 3 runs: never", "muon M scoring seed1",
      "muon M scoring seed2", "4 to run: 4 never timed"]),
    ("exp.papers.survey.meta_train", ("--minutes", "3"), ["generations after 0: 3.0 min",
                                                          "1 to run: at most about 3.0 min"]),
    ("tests.chaos", ("types", "kills", "--minutes", "3"),
     ["types: 1.5 min", "kills: 1.5 min", "2 to run: at most about 3.0 min in all"])])
def test_a_dry_run_lists_what_would_run_and_writes_nothing(command, arguments, lines, tmp_path,
                                                           capsys):
    module = importlib.import_module(command if command.count(".") > 1 or command == "tests.chaos"
                                     else f"{command}.__main__")
    place = {"exp.tune": ["--outputs"], "exp.tune.path": ["--folder"], "tests.chaos": None,
             "exp.bench.collection": ["--outputs"]}.get(command, ["--output"])
    where = [] if place is None else [*place, str(tmp_path / "new")]
    assert module.main([*arguments, "--dry-run", *where]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(lines) and all(map(str.startswith, shown, lines)), shown
    assert list(tmp_path.iterdir()) == []
