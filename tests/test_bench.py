"""The benchmarks run, at toy sizes, and their arithmetic is right."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._inductor import metrics

from exp.bench import __main__ as bench
from exp.bench import page, polar, sharding, smoke, steps, timing, training
from exp.bench.memory import peak_bytes
from exp.bench.timing import interleaved, summary


def test_what_takes_too_long_is_timed_in_a_few_rounds_and_every_round_has_its_order(monkeypatch):
    now, calls = 0.0, []

    def takes(name, seconds):
        def call():
            nonlocal now
            now += seconds
            calls.append(name)
        return call

    monkeypatch.setitem(timing.CLOCKS, "fake", lambda: now)
    functions = {"quick": takes("quick", 2), "slow": takes("slow", 8), "other": takes("other", 1)}
    seconds = interleaved(functions, 4, "fake")
    assert seconds == {"quick": [2] * 4, "slow": [8, 8, 8, None], "other": [1] * 4}
    assert calls.count("slow") == 4 and calls.count("quick") == 6  # once and twice to warm up
    assert calls.index("slow") < 3
    firsts = {name for name in functions if name in calls[:3]}
    assert firsts == set(functions)
    pairs = [name for name in calls if name != "slow"]
    assert len({tuple(pairs[n:n + 2]) for n in range(0, len(pairs), 2)}) == 2
    rows = summary(seconds, "quick")
    assert rows["slow"]["ratio"] == 4 and rows["slow"]["rounds"] == 3
    assert rows["quick"]["ms"] == 2000 and rows["quick"]["ratio_high"] == 1


def test_the_opponent_is_kellers_muon():
    from optimizer.muon import Muon

    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(6, 4, dtype=torch.float64)) for _ in range(2)]
    params[1].data.copy_(params[0].data)
    optimizers = steps.KellerMuon(params[:1]), Muon(params[1:])
    for _ in range(3):
        gradient = torch.randn(6, 4, dtype=torch.float64)
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(params[0], params[1], rtol=1e-6, atol=1e-6)  # its floor is 1e-7


def test_memory_is_what_a_call_holds_at_its_worst_and_does_not_keep():
    x, kept = torch.zeros(1000), []

    def call():
        kept.append(x + 1)  # 4000 bytes that stay
        y = x + 2
        z = y + 3
        del y
        return (z * 2).sum()  # z and its double at once

    assert peak_bytes(call, torch.device("cpu")) == pytest.approx(8000, abs=200)


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_training_needs_weights_gradients_state_and_what_the_pass_keeps(monkeypatch):
    from exp.theory.training import built

    run = built({"name": "adamw"}, 1, scale="tiny")
    training.Steps(run)()
    same = built({"name": "adamw"}, 1, scale="tiny")
    training.Bare(same)()  # the loop that ours is measured against trains alike
    for ours, theirs in zip(run.model.parameters(), same.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    weights = sum(p.nbytes for p in run.model.parameters())
    counters = 4 * len(list(run.model.parameters()))  # AdamW's step counts
    assert training.resident_bytes(run) == 4 * weights + counters
    needed = {}
    for period in (1, 5):  # step by step or five at once: the worst moment is the same
        run = built({"name": "adamw"}, 1, scale="tiny")
        needed[period] = training.needed_bytes(training.Steps(run, period), run,
                                               torch.device("cpu"))
    assert needed[1] == needed[5] > training.resident_bytes(run)
    row = {"ms": 1.0, "ms_low": 1.0, "ms_high": 2.0, "ratio": 2.0, "ratio_low": 2.0,
           "ratio_high": 3.0, "claim": None, "evaluations": 1.0, "state_per_weight": 2.0,
           "memory": 3_000_000, "memory_ratio": 1.5}
    title, table = page.training_tables({"toy": {"AdamW": row}})
    cells = [cell.strip() for cell in table.splitlines()[-1].split("|")]
    assert title == "### toy" and cells[1:-1] == [
        "AdamW", "1.0 [1.0, 2.0]", "2.00 [2.00, 3.00]", "–", "1.00", "2.00", "3", "1.50"]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_a_compiled_contestant_has_kernels_of_its_own_and_takes_the_same_step():
    def stepped(name):
        p = torch.nn.Parameter(torch.eye(2, 3))
        optimizer = steps.contestants(torch.device("cpu"))[name]([p])
        p.grad = torch.arange(6.0).view(2, 3) - 2
        optimizer.step()
        return p.detach()

    before = metrics.generated_kernel_count
    torch.testing.assert_close(stepped("muon, compiled"), stepped("muon"), rtol=1e-4, atol=1e-5)
    assert metrics.generated_kernel_count > before


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_the_command_writes_numbers_tables_and_a_plot(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # no g++
    monkeypatch.setattr(polar, "SIZES", [(4, 6), (6, 6)])
    monkeypatch.setattr(steps, "shapes", lambda: {"toy": [(2, 4, 6), (5, 5)]})
    monkeypatch.setattr(sys, "argv", ["bench", "polar", "steps", "--rounds", "2", "--output",
                                      str(tmp_path)])
    bench.main()
    rows = json.loads(next(tmp_path.glob("steps_*.json")).read_text())["results"]["toy"]
    assert rows["muon"]["state_per_weight"] == 1 and rows["muon"]["ratio"] == 1
    assert rows.keys() == steps.contestants(torch.device("cpu")).keys()
    assert {"muon, float32", "muon, bfloat16"} <= steps.contestants(torch.device("cuda")).keys()
    for name in ("ars2_neo, base", "ars2_neo, base, compiled"):  # the latter where there is a g++
        assert name not in rows or rows[name]["state_per_weight"] == 2
    assert rows["torch AdamW, fused"]["extra_per_weight"] < 0.1
    assert rows["torch AdamW, foreach"]["extra_per_weight"] > 0.5
    sizes = json.loads(next(tmp_path.glob("polar_*.json")).read_text())["results"]["sizes"]
    assert sizes["4 x 6"]["svd"]["error"]["gaussian"] < 1e-5
    dtypes = {name: row["dtype"] for name, row in sizes["4 x 6"].items()}
    assert dtypes.pop("torch, bfloat16") == "bfloat16" and set(dtypes.values()) == {"float32"}
    assert sizes["6 x 6"]["ours, keller"]["error"]["gaussian"] < 0.5
    text = (tmp_path / "bench.md").read_text()
    peer = min((name for name in rows if name.startswith(page.PEERS)),
               key=lambda name: rows[name]["ratio"])
    assert f"toy | {peer} | {1 / rows[peer]['ratio']:.2g} " in " ".join(text.split())
    assert "| muon " in text and next(tmp_path.glob("pareto_*.png")).stat().st_size > 1000
    (tmp_path / "bench.md").unlink()
    assert bench.main(["--render", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "bench.md").read_text() == text
    (tmp_path / "steps_x.json").write_text("{")
    assert bench.main(["--render", "--output", str(tmp_path)]) == 2
    assert bench.parse([]).output == Path("outputs/bench")
    with pytest.raises(SystemExit):
        bench.parse(["--rounds", "0"])


def test_smoke_names_what_is_far_from_the_cpu_what_raises_and_what_is_left_out(
    monkeypatch, tmp_path, tiny_data, capsys
):
    names = ("muon", "soap", "lion", "signum", "qk_clip")
    assert set(names) | {"sam", "ars2_neo, sync"} <= smoke.candidates().keys()
    monkeypatch.setattr(smoke, "candidates", lambda: {name: {"name": name} for name in names})
    monkeypatch.setattr(smoke, "VARIANTS", {"bf16": smoke.VARIANTS["bf16"]})
    honest, calls = smoke.weights_after, []

    def of_a_device_that_is_wrong(settings, device, **more):
        calls.append(settings["name"])
        if settings["name"] == "signum":
            raise RuntimeError("no such kernel")
        weights, optimizer = honest(settings, device, **more)
        third = calls.count("lion") == 3  # after the exact and the rounded weights
        return (1.5 * weights if settings["name"] == "lion" and third else weights), optimizer

    monkeypatch.setattr(smoke, "weights_after", of_a_device_that_is_wrong)
    assert bench.main(["smoke", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[1:3] == [
        "lion: far from the CPU's weights", "signum: RuntimeError: no such kernel"]
    rows = json.loads(next(tmp_path.glob("smoke_*.json")).read_text())["results"]
    assert rows["optimizers"]["muon"]["distance"] == 0
    assert 0.01 < rows["optimizers"]["muon"]["rounding"] < rows["optimizers"]["soap"]["rounding"]
    assert "attention" in rows["optimizers"]["qk_clip"]["left_out"]
    assert {"cifar, bf16", "grokking, bf16", "wikitext2, bf16"} <= rows["tasks"].keys()
    assert not smoke.problems({"tasks": rows["tasks"]})
    assert 0 < max(row["distance"] for row in rows["tasks"].values()) < 2e-3
    before, after = {"eval_loss": 2.0}, {"eval_loss": 1.0, "loss": 2.0}
    monkeypatch.setattr(smoke, "_trained", lambda *_: [before, {**after, "eval_loss": 1.5}])
    monkeypatch.setattr(smoke, "_reference", lambda _: ((), [2.0, 1.0]))
    assert smoke._compared_with_cpu("grokking", "bf16", torch.device("cpu")) == {
        "loss": 2.0, "eval_loss": 1.5, "distance": 0.5, "problem": "far from the CPU's loss"}
    assert "| signum " in (tmp_path / "bench.md").read_text()


def test_the_collection_has_every_file_with_settings_that_resolve(tmp_path):
    from exp.bench import collection

    names = collection.collection()
    assert {path.stem for path in Path("optimizer").glob("[a-z]*.py")} <= set(names)
    for name in names:
        for task in collection.TASKS:
            settings = collection.job(name, task, tmp_path).settings()["optimizer"]
            assert name in (settings["name"], *settings)
    assert collection.main(["adamx"]) == 2


def test_the_committed_collection_is_what_its_json_says():
    from exp.bench.collection import render

    path = Path("outputs/paper/bench/collection.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == render(results)
    results["adamw"]["cifar"]["data"] = "abcdef0"  # as runs have recorded it since
    assert render(results).endswith("; data abcdef0.\n")


def test_a_shared_step_is_its_largest_share_and_the_messages():
    assert sharding.predicted(crowded=2.0, largest_share=0.5, received=3e6, messages=4,
                              bandwidth=1e6, latency=0.25) == 1.0 + 3.0 + 1.0
    assert sharding.orthogonalization_flops((3, 2)) == 4 * 2 * 2 * 3 + 5 * 8 * 8
    found = sharding.projection()
    assert found["parameters"] == 28 * (2 * 1536**2 + 2 * 256 * 1536 + 3 * 8960 * 1536)
    assert found["normuon_share_as_stated"] == pytest.approx(7 * 2 / (16384 + 14))


def test_the_committed_report_is_what_its_json_says(tmp_path):
    folder = Path("outputs/paper/bench")
    for name in [*folder.glob("*_*.json"), folder / "notes.md"]:
        (tmp_path / name.name).write_bytes(name.read_bytes())
    page.write(tmp_path)
    assert (tmp_path / "bench.md").read_text() == (folder / "bench.md").read_text()


def test_smoke_leaves_out_what_needs_a_missing_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-compiler")
    row = smoke._attempt(lambda: smoke._built("grokking", "Sync", torch.device("cpu"),
                                              ("experiment.compile=true",)))
    assert list(row) == ["left_out"] and "no C++ compiler" in row["left_out"]


def test_a_share_is_of_the_peak_in_the_dtype_of_the_products():
    row = {"ms": 1.0, "ms_low": 1.0, "ms_high": 1.0, "ratio": 1.0, "gflops": 50.0,
           "error": {"x": 0}}
    sizes = {"4 x 4": {"ours": row, "torch, bfloat16": row}}

    def shares(**results):
        _, _, table = page.polar_tables({"sizes": sizes, **results})
        return [line.split("|")[4].strip() for line in table.splitlines()[2:]]

    assert shares(peak_gflops=100.0) == ["50%", "–"]  # as older results have it
    assert shares(peaks={"float32": 100.0, "bfloat16": 200.0}) == ["50%", "25%"]


def test_the_peers_and_the_shapes_of_the_step_benchmark():
    assert len(steps.shapes()["resnet18"]) == 10 and (512, 4608) in steps.shapes()["resnet18"]
    facts = {"device": "cpu", "processor": "x", "threads": 1, "clock": "wall",
             "versions": {"torch": "2", "heavyball": None}}
    assert page._facts(facts, "steps").endswith(
        "torch 2. Left out, because not installed: heavyball.")
    assert page._facts(facts, "polar").endswith("torch 2.")


def test_instruments_are_timed_beside_a_step(monkeypatch):
    from exp.bench import instruments
    from exp.theory.training import built

    run = built({"name": "adamw"}, 1, scale="tiny")
    functions = instruments.functions(run)
    functions[instruments.REFERENCE]()
    weights = [p.detach().clone() for p in run.model.parameters()]
    seen = []
    monkeypatch.setattr(instruments.Instruments, "take", lambda self: seen.append(self.values))
    for name in list(functions)[1:]:
        functions[name]()
    assert all(torch.equal(p, w) for p, w in zip(run.model.parameters(), weights, strict=True))
    # A thousandth of the weights stands for the update: its relative length is that.
    assert seen[1]["updates/blocks.0.W_O/ratio"] == pytest.approx([0.001 / 0.999], rel=1e-3)
    assert [f"{name}/seconds" in found for name, found in zip(
        ("spectrum", "updates", "alignment", "sharpness"), seen, strict=True)] == [True] * 4
    row = {"ms": 1.0, "ms_low": 1.0, "ms_high": 2.0, "ratio": 2.0, "ratio_low": 2.0,
           "ratio_high": 3.0}
    _, table = page.instrument_tables({"toy": {"a training step": row,
                                               "updates": {**row, "per_epoch": 0.25}}})
    assert [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]] == [
        "updates", "1.00 [1.00, 2.00]", "2.00 [2.00, 3.00]", "25.0%"]


def test_the_training_benchmark_keeps_what_it_has_measured(tmp_path, monkeypatch):
    def cut_off(*arguments):
        yield "first", {"AdamW": {"ms": 1.0}}
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "measure", cut_off)
    monkeypatch.setattr("sys.argv", ["bench", "training", "--full", "--output", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    kept = json.loads(next(tmp_path.glob("training-full_*.json")).read_text())
    assert kept["results"] == {"first": {"AdamW": {"ms": 1.0}}} and kept["facts"]["processor"]


def test_a_step_is_a_step_whether_timed_singly_or_a_cycle_at_a_time(monkeypatch):
    def interleaved(functions, rounds, clock, patience):
        assert (rounds, clock, patience) == (2, "wall", training.PATIENCE)
        for function in functions.values():
            function()
        return {"AdamW": [2.0, 4.0], training.BARE: [1.0, None], "Lazy k=5": [15.0, 30.0]}

    monkeypatch.setattr(training, "tasks", lambda: ["grokking"])
    monkeypatch.setattr(training, "FULL_MODES", ("AdamW", training.BARE, "Lazy k=5"))
    monkeypatch.setattr(training, "interleaved", interleaved)
    ((_, rows),) = training.measure(2, "wall", torch.device("cpu"), full=True)
    assert {mode: (row["ms"], row["ratio"], row["rounds"]) for mode, row in rows.items()} == {
        "AdamW": (3000, 1.0, 2), training.BARE: (1000, 0.5, 1), "Lazy k=5": (4500, 1.5, 2)}
    assert [row["evaluations"] for row in rows.values()] == [1.0, 1.0, 1.2]
