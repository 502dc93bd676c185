"""Every command answers --help and mistyped options before it imports torch, in a blink."""

import os
import subprocess
import sys

import pytest

COMMANDS = ["grokking.train", "cifar.train", "wikitext2.train", "runs", "theory", "landscape",
            "bench", "reproduce", "tune", "report"]


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_are_read_before_torch_is_imported(command, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    for arguments, status in ((["--help"], 0), (["--no-such-option"], 2)):
        done = subprocess.run([sys.executable, "-m", f"exp.{command}", *arguments], text=True,
                              capture_output=True, check=False,
                              env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert done.returncode == status, done.stderr
        assert f"usage: python -m exp.{command}" in done.stdout + done.stderr
