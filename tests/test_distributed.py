"""Two processes against one: trajectories, refusals, agreement, resuming, a process that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY
from distributed_worker import CASES

from exp.grokking import train
from exp.harness import cli, distributed
from exp.harness.errors import ConfigError
from optimizer.parts.distributed.gathered import _rows
from optimizer.parts.distributed.sharded import balanced

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
GROKKING = ["-m", "exp.grokking.train", "--config", "config/lrp_grok_ars2_neo_aga_400e.toml",
            *[word for override in TINY["grokking"] for word in ("--set", override)]]


def environment(**extra):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ".", **extra}


@pytest.fixture(scope="module")
def found(tiny_root, tmp_path_factory):
    """Every case of distributed_worker: by one process, and by each of two."""
    root, sums = tiny_root
    (root / "checksums.json").write_text(json.dumps(sums))
    out = tmp_path_factory.mktemp("found")
    ended = subprocess.run([sys.executable, "tests/distributed_worker.py", str(out), str(root)],
                           text=True, env=environment(ARS_DATA=str(root)), capture_output=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {name: torch.load(out / f"{name}.pt") for name in ("one", "main", "other")}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes_take_the_steps_of_one(found, case):
    one, main, other = (found[name][case] for name in ("one", "main", "other"))
    assert one["losses"][-1] != one["losses"][0]
    assert main["losses"] == pytest.approx(one["losses"], rel=1e-9)
    assert main["losses"] == other["losses"]
    assert main["evaluation"] == other["evaluation"]
    # Means over float64 but for the accuracies and CIFAR-10's losses, which are float32.
    rel = 1e-9 if case[0] == "wikitext2" else 1e-6
    assert main["evaluation"] == pytest.approx(one["evaluation"], rel=rel)
    assert main["train_loss"] == pytest.approx(one["train_loss"], rel=1e-9)
    for name, expected in one["weights"].items():
        assert torch.equal(main["weights"][name], other["weights"][name])
        scale = expected.double().norm()
        assert (main["weights"][name] - expected).double().norm() <= 1e-6 * scale, name


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_each_state_is_kept_once_and_a_checkpoint_holds_all_of_it(found, case):
    one, main, other = (found[name][case] for name in ("one", "main", "other"))
    if case[2] == "none":
        assert main["kept"] == other["kept"] == one["kept"]
    else:
        assert main["kept"] + other["kept"] == one["kept"]
        assert 0 < main["kept"] < one["kept"]
    assert shapes(main["state"]) == shapes(one["state"])


def shapes(value):
    if torch.is_tensor(value):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {key: shapes(item) for key, item in value.items()}
    return [shapes(item) for item in value] if isinstance(value, list) else type(value)


@pytest.mark.parametrize(("case", "words"), [
    ("one_process", ("KFAC", "one process only")), ("last_batch", ("has 1 examples", "drop_last")),
    ("instruments", ("diagnostics", 'sharding = "none"')), ("lbfgs", ("LBFGS", "one vector")),
    ("model's tensors", ("QKClip", "own tensors")), ("all tensors", ("Lookahead", "own tensors")),
    ("local", ("SAM", 'sharding = "none"')), ("local steps", ("DiLoCo", "own")),
    ("shapes", ("the processes built different models",))])
def test_what_cannot_be_shared_out_is_refused_by_name(found, case, words):
    for process in ("main", "other"):
        said = found[process]["refusals"][case]
        assert all(word in said for word in words), said


def test_local_perturbations_are_each_processes_own(found):
    for process in ("main", "other"):
        for got, expected in zip(found[process]["local_sam"], found["one"]["local_sam"],
                                 strict=True):
            assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_local_steps_and_an_outer_one_by_hand(found):
    rounds = {"local_sgd": {1: [0.905, -1.525, 2.525]},
              "diloco": {1: [0.87365, -1.36825, 2.36825],
                         3: [0.5796824374, 0.1015878130, 0.8984121870]}}
    for process in ("main", "other"):
        bowls = found[process]["bowls"]
        for name, expected in rounds.items():
            for number, w in expected.items():
                assert bowls[name][number - 1].tolist() == pytest.approx(w, abs=1e-10)
            assert bowls[f"{name} bytes"] == 3 * 3 * 8  # rounds, weights, bytes of one


def test_the_bytes_of_gradients_and_of_weights(found):
    main, other = (found[name]["sent"] for name in ("main", "other"))
    assert main == other and main["gradients"] == 2 * main["weights"] > 0  # 4 times, and 2
    assert found["one"]["sent"] == {"gradients": 0, "weights": 0}


def test_two_processes_take_the_steps_of_two_models_in_one(found):
    expected = found["one"]["local_steps"]["evaluated"]
    main, other = (found[name]["local_steps"] for name in ("main", "other"))
    for process in (main, other):
        torch.testing.assert_close(process["evaluated"], expected, rtol=1e-9, atol=1e-12)
        for name, weights in process["again"].items():  # resumed within a round: to the bit
            assert all(map(torch.equal, weights, process[name]))
        assert process["moved"]
    assert not torch.equal(main["trained"][0], other["trained"][0])  # the fifth step is local


def test_a_process_may_have_no_parameters(found):
    one, main, other = (found[name]["lone_matrix"] for name in ("one", "main", "other"))
    for rule, expected in one.items():
        assert torch.equal(main[rule], other[rule])
        torch.testing.assert_close(main[rule], expected, rtol=1e-9, atol=1e-12)


def test_batch_norms_of_many_processes_compute_in_bf16_too(found):
    one, main, other = (found[name]["bf16"] for name in ("one", "main", "other"))
    assert main["losses"] == other["losses"]
    assert main["losses"] == pytest.approx(one["losses"], rel=2e-2)
    assert torch.equal(main["means"], other["means"])
    assert torch.allclose(main["means"], one["means"], rtol=2e-2, atol=1e-3)


def test_each_process_goes_on_with_its_own_random_numbers(found):
    (main, main_again), (other, other_again) = (
        found[name]["random numbers"] for name in ("main", "other"))
    assert not torch.equal(main, other)
    assert torch.equal(main, main_again)
    assert torch.equal(other, other_again)


def test_all_processes_know_what_one_knows(found):
    for number, process in enumerate(("main", "other")):
        agreed = found[process]["agreement"]
        assert agreed["alone"] == ("no such file" if number else "process 1: no such file")
        assert agreed["maxima"] == [0, 0, 2, 1]  # a step later, the most serious
        assert agreed["from main"] == 0
        assert agreed["share"] == [[[0, 1], [2, 3], [4]], [[5, 6], [7], [8]]][number]


def test_the_dearest_items_are_dealt_first():
    assert balanced([1, 5, 3, 3], 2) == [0, 0, 1, 1]
    assert balanced([2, 2], 4) == [0, 1]  # two processes without work


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 8])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_are_dealt_as_chunk_does(rows, processes):
    chunks = [len(part) for part in torch.arange(rows).chunk(processes)]
    assert _rows(rows, processes) == chunks + [0] * (processes - len(chunks))


@pytest.mark.parametrize(("device", "missing", "words"), [
    ("cpu", "is_gloo_available", "without gloo"), ("cuda", "is_nccl_available", "without NCCL")])
def test_a_missing_backend_is_named(monkeypatch, device, missing, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(distributed.dist, missing, lambda: False)
    with pytest.raises(ConfigError, match=words):
        distributed._backend(device)


def test_more_processes_than_cards_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="--nproc-per-node 2"):
        distributed._backend("cuda")


# --- runs


def run(output, *options, processes):
    """The exit status and the output of a run; one process is this one."""
    # Lazy: where AGA takes its second pass may hang on rounding.
    words = [*GROKKING, "--set", "optimizer.adaptive_sync=false", "--set", "optimizer.k=3",
             "--device", "cpu", "--output", str(output), *options]
    if processes == 1:
        return cli.launch(train.TASK, train.train, words[2:]), "status"
    ended = subprocess.run([sys.executable, "tests/two_processes.py", *words[2:]],
                           env=environment(), text=True, capture_output=True)
    return ended.returncode, ended.stdout + ended.stderr


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert run(whole, "--set", "experiment.epochs=12", processes=1)[0] == 0
    for epochs, processes, sharding in ((3, 1, "optimizer"), (6, 2, "model"),
                                        (9, 2, "optimizer"), (12, 1, "none")):
        status, text = run(moved, "--set", f"experiment.epochs={epochs}", "--resume",
                           "--set", f'experiment.sharding="{sharding}"', processes=processes)
        assert status == 0, text[-2000:]
        assert text.count("status") == 1  # one table, whatever the number of processes
        assert json.loads((moved / "run.json").read_text())["processes"] == processes
    expected, got = metrics(whole), metrics(moved)
    assert [line["epoch"] for line in got] == list(range(1, 13))
    for line, other in zip(expected, got, strict=True):
        for metric in ("train_loss", "eval_loss"):
            assert other[metric] == pytest.approx(line[metric], rel=2e-3)
        assert other["gradient_evaluations"] == line["gradient_evaluations"]
    assert expected[-1]["train_loss"] < 0.9 * expected[0]["train_loss"]


def test_a_killed_process_ends_the_run_and_torchrun_starts_it_again(tmp_path):
    output, log = tmp_path / "killed", tmp_path / "log"
    with open(log, "w") as file:
        torchrun = subprocess.Popen(
            [*TORCHRUN, "--max-restarts", "1", *GROKKING, "--output", str(output),
             "--set", "experiment.epochs=100000"], env=environment(), stdout=file, stderr=file)
    try:
        wait_for(lambda: (output / "latest.pt").exists(), torchrun)
        started = (output / "run.json").stat().st_mtime_ns
        os.kill(child_of(torchrun.pid, "RANK=1"), signal.SIGKILL)
        wait_for(lambda: (output / "run.json").stat().st_mtime_ns != started, torchrun)
        resumed = len(metrics(output))
        assert resumed > 5  # from the checkpoint, not from the start
        wait_for(lambda: len(metrics(output)) > resumed + 5, torchrun)
        torchrun.send_signal(signal.SIGINT)
        torchrun.wait(90)
    finally:
        torchrun.kill()
    assert [line["epoch"] for line in metrics(output)] == list(range(1, len(metrics(output)) + 1))
    assert json.loads((output / "summary.json").read_text())["status"] == "interrupted"
    text = log.read_text()
    told = text.count("another process of this run has died")
    stopped = "closing signal SIGTERM" in text  # torchrun may end the other one before it notices
    assert told == 1 or told == 0 and stopped, text[-3000:]


def wait_for(condition, process, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "torchrun ended"
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.1)


def child_of(parent, variable):
    """The child process that has this in its environment."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                if int(stat[1]) == parent and variable in (folder / "environ").read_text():
                    return int(folder.name)
            except OSError:
                continue
    raise AssertionError("no such child")
