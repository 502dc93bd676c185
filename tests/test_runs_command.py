"""exp.runs lists, compares and exports hand-written run folders, damaged ones too."""

import csv
import json
import os
import subprocess
import sys
import time

import pytest

from exp.harness.lock import acquire, release
from exp.runs.__main__ import main
from exp.runs.records import COLUMNS

CONFIG = """
[experiment]
task = "cifar"
seed = {seed}

[optimizer]
name = "{name}"
lr = {lr}
"""
SUMMARY = {"status": "completed", "best": {"epoch": 2, "eval_accuracy": 0.5, "test_accuracy": 0.4}}


def write_run(folder, name="adamw", seed=1, lr=0.1, losses=(2.0, 1.0), summary=SUMMARY, extra=""):
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG.format(name=name, seed=seed, lr=lr) + extra)
    (folder / "run.json").write_text(json.dumps({"device": "CPU", "commit": "abc"}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({
        "epoch": epoch, "step": 10 * epoch, "gradient_evaluations": 20 * epoch,
        "train_loss": loss, "eval_loss": loss, "eval_accuracy": 0.25 * epoch,
        "seconds": 3.0 * epoch, "diagnostics": {"phi": 0.5}}) + "\n"
        for epoch, loss in enumerate(losses, 1)))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def listed(capsys, *arguments):
    assert main(["list", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_list_shows_what_the_files_say(tmp_path, capsys):
    folder = write_run(tmp_path / "a" / "seed1", "muon", extra="[optimizer.sam]\nrho = 0.05\n")
    os.utime(folder / "metrics.jsonl", (time.time() - 90, time.time() - 90))
    write_run(tmp_path / "b" / "seed7", seed=7, summary=None)
    first, second = listed(capsys, tmp_path, "--sort", "seed")
    assert 89 <= first.pop("age") <= 95
    assert first == {"task": "cifar", "optimizer": "sam_muon", "seed": 1, "state": "finished",
                     "status": "completed", "epochs": 2, "metric": "eval_accuracy", "best": 0.5,
                     "path": str(folder)}
    assert (second["state"], second["status"]) == ("failed", None)
    assert (second["metric"], second["best"]) == ("eval_loss", 1.0)
    assert main(["list", str(tmp_path), "--sort", "path", "--reverse"]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == list(COLUMNS)
    assert "seed7" in lines[0] and "0:01:30" in lines[1]


@pytest.mark.parametrize(("options", "seeds"), [
    (["--optimizer", "a*"], [1, 2]), (["--state", "waiting"], [2]), (["--task", "grok*"], []),
    (["--status", "diverged", "--optimizer", "muon"], [3]), (["--path", "*/x/*"], [2]),
])
def test_filters_are_patterns(tmp_path, capsys, options, seeds):
    write_run(tmp_path / "seed1", seed=1)
    write_run(tmp_path / "x" / "seed2", seed=2, summary={"status": "interrupted"})
    write_run(tmp_path / "seed3", "muon", seed=3, summary={"status": "diverged"})
    assert [row["seed"] for row in listed(capsys, tmp_path, *options)] == seeds


@pytest.mark.parametrize(("name", "content"), [
    ("config.toml", b"[experiment]\n"), ("config.toml", b"\xff\xfe"), ("config.toml", b"a = ["),
    ("config.toml", b'experiment = 1\noptimizer = "x"\n'), ("run.json", b""),
    ("run.json", b"[]"), ("metrics.jsonl", b'{"epoch": 1\n{"epoch": 2}\n'),
    ("metrics.jsonl", b"7\n"), ("summary.json", b"[" * 100_000), ("summary.json", b"null"),
    ("summary.json", b'{"status": 3}'),
])
def test_damaged_files_are_survived_and_named(tmp_path, capsys, name, content):
    folder = write_run(tmp_path / "damaged")
    write_run(tmp_path / "whole", seed=2)
    (folder / name).write_bytes(content)
    assert [row["state"] for row in listed(capsys, tmp_path, "--sort", "path")] == [
        "damaged", "finished"]
    for command in (["list"], ["export", "--csv", str(tmp_path / "rows.csv")]):
        assert main([*command, str(tmp_path)]) == 0
        assert f"{folder / name}\n" in capsys.readouterr().err


def test_a_line_that_a_crash_cut_off_is_no_damage_and_strange_values_are_left_out(tmp_path, capsys):
    folder = write_run(tmp_path / "run", summary={"status": "?", "best": {"eval_accuracy": "high"}})
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"eval_loss": "low", "epoch": null}\n{"epoch": 4, "eval_lo')
    row, = listed(capsys, tmp_path)
    assert [row[key] for key in ("state", "epochs", "metric", "best")] == ["failed", 3,
                                                                           "eval_loss", 1.0]
    assert main(["compare", str(tmp_path), "--figure", str(tmp_path / "x.png")]) == 0


def test_compare_names_runs_in_the_order_given_and_lists_only_what_differs(tmp_path, capsys):
    b = write_run(tmp_path / "second", "muon", lr=0.02, extra="momentum = 0.9\n")
    a = write_run(tmp_path / "first$x^$", losses=(2.0, 0.75))
    figure = tmp_path / "figures" / "runs.png"
    assert main(["compare", str(b), str(a), "--axis", "seconds", "--figure", str(figure)]) == 0
    text = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    head, first, second = cells[0], dict(zip(cells[0], cells[2], strict=True)), cells[3]
    assert first["run"] == "A" and first["path"] == str(b) and first["eval_loss"] == "1"
    assert dict(zip(head, second, strict=True))["eval_loss"] == "0.75"
    assert cells[5:10] == [["setting", "A", "B"], cells[6], ["optimizer.name", '"muon"', '"adamw"'],
                           ["optimizer.lr", "0.02", "0.1"], ["optimizer.momentum", "0.9", "–"]]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_curves_are_drawn_over_the_axis_asked_for(tmp_path, monkeypatch):
    import exp.report.canvas
    from exp.runs.compare import _axis, draw
    from exp.runs.records import find_runs

    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda axes, xs, ys, **style: drawn.append(
        (xs, ys, style["color"], style["label"])))
    write_run(tmp_path / "run", "muon")
    runs = dict(zip("A", find_runs([tmp_path]), strict=True))
    assert _axis("eval_perplexity", ["grokking", "wikitext2"]) == ("eval perplexity (ppl)", "log")
    assert _axis("eval_accuracy", ["cifar", "outputs.evil"]) == ("eval accuracy", "linear")
    assert _axis("eval_accuracy", ["outputs.evil"]) == ("eval_accuracy", "linear")
    for axis, xs in (("epochs", [1, 2]), ("evaluations", [20, 40]), ("seconds", [3.0, 6.0])):
        drawn.clear()
        draw(tmp_path / "x.png", runs, axis)
        style = (exp.report.canvas.color("muon"), "A: Muon")
        assert drawn == [(xs, [2.0, 1.0], *style)] * 2 + [(xs, [0.25, 0.5], *style)]


def test_export_writes_one_long_row_per_number(tmp_path, capsys):
    folder = write_run(tmp_path / "run", losses=(2.0, float("nan")))
    text = (folder / "metrics.jsonl").read_text().replace("NaN", "null")
    (folder / "metrics.jsonl").write_text(text)
    assert main(["export", str(tmp_path), "--csv", str(tmp_path / "x.csv")]) == 0
    assert main(["export", str(tmp_path), "--json", str(tmp_path / "x.json")]) == 0
    with open(tmp_path / "x.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows[:4]] == ["train_loss", "eval_loss", "eval_accuracy",
                                                   "diagnostics/phi"]
    assert rows[0] == {"path": str(folder), "task": "cifar", "optimizer": "adamw", "seed": "1",
                       "status": "completed", "epoch": "1", "step": "10",
                       "gradient_evaluations": "20", "seconds": "3.0", "metric": "train_loss",
                       "value": "2.0"}
    parsed = json.loads((tmp_path / "x.json").read_text())
    assert len(parsed) == len(rows) == 8
    assert (parsed[4]["value"], rows[4]["value"]) == (None, "")


def test_a_run_that_someone_writes_to_is_running(tmp_path, capsys):
    folder = write_run(tmp_path / "run", summary=None)
    lock = acquire(folder)
    assert [row["state"] for row in listed(capsys, tmp_path)] == ["running"]
    release(lock)
    assert [row["state"] for row in listed(capsys, tmp_path)] == ["failed"]


def test_a_folder_that_is_not_there_and_nothing_to_compare_are_one_line(tmp_path, capsys):
    assert main(["list", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: no folder {tmp_path / 'none'}\n"
    assert main(["compare", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert listed(capsys, tmp_path) == []


def test_nothing_heavy_is_imported_and_nothing_that_a_record_names(tmp_path):
    (tmp_path / "outputs" / "evil").mkdir(parents=True)
    (tmp_path / "outputs" / "evil.py").write_text("raise SystemExit('imported')")
    write_run(tmp_path / "outputs" / "run", "outputs.evil:X")
    code = ("import sys; import exp.runs.__main__ as runs; status = runs.main(['list']);"
            " print(status, {'torch', 'matplotlib', 'scipy.stats'} & sys.modules.keys())")
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                           text=True, check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert "outputs.evil:X" in shown.stdout
    assert shown.stdout.endswith("0 set()\n")
