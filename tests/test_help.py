"""Every command answers --help and mistyped options before it imports torch, in a blink."""

import os
import subprocess
import sys

import pytest

COMMANDS = ["optimizer", *(f"exp.{name}" for name in (
    "grokking.train", "cifar.train", "wikitext2.train", "ladder.train", "runs", "theory",
    "landscape", "bench", "bench.collection", "reproduce", "tune", "tune.find_lr", "site"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_are_read_before_torch_is_imported(command, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    for arguments, status in ((["--help"], 0), (["--no-such-option"], 2)):
        done = subprocess.run([sys.executable, "-m", command, *arguments], text=True,
                              capture_output=True, check=False,
                              env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert done.returncode == status, done.stderr
        assert f"usage: python -m {command}" in done.stdout + done.stderr
