"""Damaged run folders: each is made whole from what is left, or refused in one line untouched."""

import json
import math
from dataclasses import replace

import pytest
import torch
from test_runs import checkpoint, launch, lines, timeless

from exp.harness.folder import RunFolder
from exp.harness.task import task_named
from exp.jobs.finished import finished_run
from exp.jobs.freshness import kept_recipes
from exp.jobs.queue import Job, state


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A completed grokking run of two epochs whose best epoch is the first."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert launch("grokking", folder, epochs=2) == 0
    state = checkpoint(folder)
    state["position"]["best"]["epoch"] = 1
    torch.save(state, folder / "latest.pt")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for path in made.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def refused(folder, capsys, *options):
    before = content(folder)
    assert launch("grokking", folder, *(options or ["--resume"]), epochs=3) == 2
    assert content(folder) == before
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


DAMAGE = {"missing": None, "empty": b"", "cut": b'{"epoch": 1, "st', "garbled": b"\xff\x00spam\n",
          "of another kind": b"[1]\n", "nested": b"[" * 10**5 + b"\n",
          "with parts of another kind": b'{"epoch": 1, "status": [1], "recipes": {"exp": [1]}, '
                                        b'"sources": 1, "resumed_from": 3}\n'}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["run.json", "summary.json", "metrics.jsonl"])
def test_a_damaged_neighbour_never_blocks_a_whole_checkpoint(name, damage, made, folder, capsys):
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(DAMAGE[damage])
    assert launch("grokking", folder, "--resume", epochs=3) == 0
    assert [line["epoch"] for line in lines(folder)] == [1, 2, 3]
    assert timeless(folder)[:2] == timeless(made)
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 3
    if name == "run.json":
        assert "the code of the earlier epochs is unknown" in capsys.readouterr().err
        assert kept_recipes(folder / "run.json")["exp.harness"] == 0


@pytest.mark.parametrize("change", [
    lambda text: text.splitlines(True)[0],  # shorter than the checkpoint
    lambda text: "spam\n" + text.splitlines(True)[1],
    lambda text: text.splitlines(True)[0] + text,  # what two writers leave
    lambda text: text.replace('"epoch": 2', '"epoch": 3'),
    lambda text: text.replace('"step": 2', '"step": NaN'),
    lambda text: text.replace('"epoch": 1', '"epoch": true')])
def test_a_record_that_is_not_the_checkpoints_is_restored_or_refused(change, made, folder, capsys):
    path = folder / "metrics.jsonl"
    path.write_text(change(path.read_text()))
    state = checkpoint(folder)
    assert launch("grokking", folder, "--resume", epochs=2) == 0
    assert timeless(folder) == timeless(made)
    path.write_text(change(path.read_text()))
    del state["record"]  # a checkpoint from before it held the record
    torch.save(state, folder / "latest.pt")
    assert "metrics.jsonl is damaged" in refused(folder, capsys)


def test_a_number_that_was_changed_is_the_checkpoints_again(made, folder):
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"eval_loss": ', '"eval_loss": 1'))
    assert timeless(folder) != timeless(made)
    assert launch("grokking", folder, "--resume", epochs=2) == 0
    assert timeless(folder) == timeless(made)


@pytest.mark.parametrize("damage", [None, b"", b"spam"])
def test_lost_best_weights_are_refused_unless_the_checkpoint_has_them(damage, folder, capsys):
    path = folder / "best.pt"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    assert "best.pt is missing or damaged" in refused(folder, capsys)
    state = checkpoint(folder)
    state["position"]["best"]["epoch"] = 2  # that of the checkpoint itself
    torch.save(state, folder / "latest.pt")
    assert launch("grokking", folder, "--resume", epochs=2) == 0
    best = RunFolder(folder, resume=True).load_checkpoint("best.pt")["model"]
    assert all(torch.equal(best[name], tensor) for name, tensor in state["model"].items())


def test_best_weights_may_be_of_a_later_epoch_that_the_run_will_reach(folder, capsys):
    best = {**checkpoint(folder, "best.pt"), "epoch": 2}  # just before the run was killed
    torch.save(best, folder / "best.pt")
    assert launch("grokking", folder, "--resume", epochs=2) == 0
    assert json.loads((folder / "summary.json").read_text())["best"] == {
        key: value for key, value in best.items() if key != "model"}
    torch.save({**best, "epoch": 4}, folder / "best.pt")
    assert "best.pt is of epoch 4, but the run would end with 3" in refused(folder, capsys)
    torch.save({**best, "epoch": 0}, folder / "best.pt")
    state = checkpoint(folder)
    state["position"]["best"]["epoch"] = 1
    torch.save(state, folder / "latest.pt")
    assert "best.pt is missing or damaged" in refused(folder, capsys)


def test_best_weights_of_another_model_are_refused(folder, capsys):
    torch.save({"model": {"W": torch.ones(1)}, "epoch": 1}, folder / "best.pt")
    assert "best.pt is missing or damaged" in refused(folder, capsys)
    torch.save({"model": 3, "epoch": 1}, folder / "best.pt")
    assert "best.pt is missing or damaged" in refused(folder, capsys)


PARTS = ["settings", "position", "model", "optimizer", "objective", "rng",
         "wall_seconds"]


@pytest.mark.parametrize("value", ["gone", {}, "text"])
@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_of_another_structure_is_one_line(part, value, folder, capsys):
    state = checkpoint(folder)
    if value == "gone":
        del state[part]
    else:
        state[part] = value
    torch.save(state, folder / "latest.pt")
    assert "damaged" in refused(folder, capsys)


@pytest.mark.parametrize(("part", "key", "value"), [
    ("position", "epoch", "2"), ("position", "spam", 1), ("position", "best", None),
    ("settings", "optimizer", None), ("settings", "model", "gone"),
    ("objective", "sums", []), ("objective", "gradient_evaluations", "gone"),
    ("optimizer", "param_groups", []), ("model", "W_U", torch.ones(1)), ("model", "W_U", "gone")])
def test_a_part_of_a_checkpoint_of_another_structure_is_one_line(part, key, value, folder, capsys):
    state = checkpoint(folder)
    state[part][key] = value
    if isinstance(value, str) and value == "gone":
        del state[part][key]
    torch.save(state, folder / "latest.pt")
    refused(folder, capsys)


def test_a_damaged_summary_without_a_checkpoint_is_refused(folder, capsys):
    (folder / "latest.pt").unlink()
    (folder / "summary.json").write_text("")
    assert "holds a damaged run without latest.pt" in refused(folder, capsys)
    assert "holds a run (damaged)" in refused(folder, capsys, "--seed", "3")


def test_temporary_files_of_dead_runs_are_removed(folder):
    (folder / ".latest.pt.12345.tmp").write_bytes(b"half")
    assert launch("grokking", folder, "--resume", epochs=2) == 0
    assert not list(folder.glob(".*.tmp"))


def test_a_run_that_another_process_has_just_finished_is_not_begun_anew(tmp_path):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.lock()
    first.begin({}, {"sources": {}})
    first.append_metrics({"epoch": 1, "loss": math.nan})
    first.unlock()
    with pytest.raises(Exception, match="holds a run"):
        second.lock()
    assert first.metrics() == [{"epoch": 1, "loss": None}]
    third = RunFolder(tmp_path / "run", resume=True)
    third.lock()  # the one before has left no lock
    third.unlock()


@pytest.mark.parametrize(("name", "change"), [
    ("metrics.jsonl", lambda text: text.splitlines(True)[0]),
    ("metrics.jsonl", lambda text: text + text.splitlines(True)[1]),
    ("metrics.jsonl", lambda text: text + "spam\n"), ("metrics.jsonl", lambda text: ""),
    ("metrics.jsonl", lambda text: text.replace('"eval_loss": ', '"eval_loss": "x", "": ')),
    ("run.json", lambda text: ""), ("run.json", lambda text: "[]"),
    ("run.json", lambda text: text.replace('"recipes": {', '"recipes": [1], "": {'))])
def test_a_finished_run_counts_only_as_a_whole_and_the_queue_sets_others_aside(
        name, change, folder):
    (folder / "again.toml").write_text((folder / "config.toml").read_text())
    job = Job("grokking", folder / "again.toml", 42, folder)
    assert state(job) == "finished" and job.outcome() == 0
    assert finished_run(folder, task_named("grokking"))[0]["epochs"] == 2
    (folder / name).write_text(change((folder / name).read_text()))
    assert state(job) == "damaged" and job.outcome() is None
    assert finished_run(folder, task_named("grokking")) is None
    (folder.parent / "again.toml").write_text((folder / "again.toml").read_text())
    work = replace(job, config=folder.parent / "again.toml").work()
    assert "--resume" in work.command
    assert not folder.exists() and (folder.parent / "run.other1" / name).exists()
