"""Neither a figure nor a print decides how a run ends."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from test_runs import launch

from exp.harness.output import Tolerant, tolerant_output

COMMAND = [sys.executable, "-m", "exp.grokking.train", "--config",
           "config/lrp_grok_adamw_600e.toml", "--device", "cpu",
           *(word for override in [*TINY["grokking"], "experiment.epochs=1"]
             for word in ("--set", override))]


def test_a_figure_that_cannot_be_drawn_is_a_warning(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("exp.harness.run.plot_curves", broken)
    assert launch("grokking", tmp_path / "run", epochs=1) == 0
    captured = capsys.readouterr()
    assert "warning: cannot draw" in captured.err and "no fonts" in captured.err
    assert "completed" in captured.out
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(("redirect", "variables"), [
    ("", {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONIOENCODING": "ascii"}),
    ("2>&1 | true", {}), ("> /dev/full 2>&1", {}), (">&- 2>&-", {})])
def test_a_run_completes_whatever_becomes_of_its_output(redirect, variables, tmp_path):
    output = tmp_path / "runs_$x^$" / "seed1"
    script = f'set -o pipefail; "$@" {redirect}'
    ran = subprocess.run(["bash", "-c", script, "bash", *COMMAND, "--output", str(output)],
                         env={**os.environ, **variables}, capture_output=True, text=True,
                         check=False)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr and "warning" not in ran.stderr
    assert {"summary.json", "curves.png"} <= {path.name for path in output.iterdir()}
    if not redirect:
        assert "gradient evaluations" in ran.stdout


def test_characters_that_an_encoding_lacks_are_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Tolerant(stream).write("a · \udcff b\n")
    stream.flush()
    assert stream.buffer.getvalue() == b"a \\xb7 \\udcff b\n"


def test_what_cannot_be_written_is_dropped_and_the_streams_come_back(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    with tolerant_output():
        print("text", flush=True)
    assert sys.stdout is closed
    with Path(os.devnull).open() as unwritable:
        Tolerant(unwritable).write("text")
