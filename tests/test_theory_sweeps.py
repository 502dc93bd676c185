"""exp.theory's sweeps over learning rates, and the hypotheses of the optimizer summary."""

import math

import pytest
import torch
from test_theory import rows
from test_theory_small import check_pages

from exp.papers.ars2_neo.statements import (
    adaptive_eps,
    adaptive_radius,
    batch_size,
    eight_bit,
    lion_oscillation,
    lookahead_sensitivity,
    sam_accuracy,
    shear_storage,
    small_batches,
    spectral_clipping,
    warm_up,
)
from exp.theory import __main__ as command
from exp.theory import sam, sweeps, training


def valley(best: float, floor: float = 0.0, seeds: int = 2) -> dict:
    """A grid whose losses are a parabola over log2(lr) with its bottom at log2(lr) = best."""
    return {2.0**n: [floor + (n - best) ** 2] * seeds for n in range(-12, 13)}


# --- sweeps


def test_the_best_rate_of_a_parabola_and_its_exponent():
    rates = [2.0**n for n in range(-3, 4)]
    losses = [(math.log2(rate) - 0.3) ** 2 for rate in rates]
    assert sweeps.best_rate(rates, losses) == pytest.approx(2**0.3)
    assert sweeps.best_rate(rates, [*losses[:4], math.inf, math.inf, math.inf]) == 1
    assert sweeps.best_rate(rates, rates) == rates[0]  # at the end of the grid
    found = sweeps.exponent([64, 128, 256], [3 / 64, 3 / 128, 3 / 256])
    assert found == pytest.approx(-1)


def test_the_grid_grows_until_the_best_has_two_neighbours_on_either_side():
    found = sweeps.sweep(lambda lr: [(math.log2(lr) - 4) ** 2], 1.0)
    assert list(found) == [2.0**n for n in range(-1, 7)]


def test_what_is_read_off_a_grid():
    by_rate = {1: [3.0, 5.0], 2: [2.0, 4.0], 4: [1.0, None]}
    assert sweeps.best_losses(by_rate) == [2.0, 4.0]
    assert sweeps.lowest(by_rate) == 3.0
    assert sweeps.best_of_grid(by_rate) == 2.0
    assert sweeps.sweep(lambda lr: [1.0 if lr < 2 else math.inf], 1.0)[2.0] == [None]


def test_arrivals_and_speed_ups_by_hand():
    # Points at steps 5, 10, 15; the level 2 is crossed half way from 10 to 15.
    assert sweeps.arrival([5.0, 3.0, 1.0], 2.0) == 12.5
    assert sweeps.arrival([5.0, 3.0, 1.0], 6.0) == 5
    assert sweeps.arrival([5.0, 3.0, 1.0], 0.5) == math.inf
    # The higher of the lowest losses is 1: at 15 and at 10 steps.
    assert sweeps.speedups([[5.0, 3.0, 1.0]], [[3.0, 1.0, 0.5]]) == [pytest.approx(0.5)]
    assert sweeps.speedups([[3.0, 1.0, 0.5]], [[5.0, 3.0, 1.0]]) == [pytest.approx(-1 / 3)]


def test_a_curve_is_the_training_it_says(tiny_data):
    found = sweeps.curve(sweeps.sgd(0.1), 1, count=4, batch_size=2, warmup=0.5, every=2)
    run = training.built(sweeps.sgd(0.1), 1, "wikitext2", "small", data={"batch_size": 2})
    by_hand = torch.optim.SGD(run.model.parameters(), lr=1.0, momentum=0.9)
    batches, expected = training.batches(run), []
    # Half and all of the rate while it warms up over two steps, less a quarter for each one done.
    for step, lr in enumerate((0.05, 0.1 * 0.75, 0.1 * 0.5, 0.1 * 0.25)):
        by_hand.param_groups[0]["lr"] = lr
        by_hand.zero_grad()
        run.objective.loss_fn(run.model, *next(batches))[0].backward()
        by_hand.step()
        if step % 2:
            with torch.no_grad():
                rows = [tensor[:sweeps.HELD_OUT["wikitext2"]] for tensor in run.data.eval]
                expected.append(float(run.objective.loss_fn(run.model, *rows)[0]))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_diverged_curve_is_infinite_to_its_end(tiny_data):
    found = sweeps.curve(sweeps.sgd(1e30), 1, count=6, batch_size=2, every=1)
    assert len(found) == 6 and found[-1] == math.inf


# --- verdicts


@pytest.mark.parametrize(("slopes", "verdict"), [
    ((1, 1, 1), "holds"), ((1, 1, 0), "holds"), ((1, 0.5, 0), "holds partly"),
    ((0, 1, 1), "holds partly"), ((0.5, 0.5, 0), "does not hold")])
def test_the_verdict_on_batch_size(slopes, verdict):
    best, by_batch = -6.0, {}
    for batch, slope in zip((2, 8, 32, 128), (*slopes, 0), strict=True):
        by_batch[batch] = valley(best)
        best += 2 * slope  # a batch four times as large
    assert [a[0] for a in batch_size.exponents(by_batch).values()] == pytest.approx(slopes)
    assert batch_size.judge(rows({"SGD": by_batch, "AdamW": by_batch},
                                 *batch_size.KEYS)).word == verdict


@pytest.mark.parametrize(("small", "middle", "verdict"), [
    (0.1, 0.1, "holds"), (0.1, -0.1, "holds partly"), (-0.1, 0.1, "does not hold")])
def test_the_verdict_on_small_batches(small, middle, verdict):
    def rules(worse):
        return {"AdamW": valley(0, 1.0), "Muon": valley(3, 1.0 + worse)}

    by_batch = {2: rules(small), 128: rules(middle), 256: rules(-1.0)}
    assert small_batches.differences(rules(small)) == pytest.approx([small] * 2)
    assert small_batches.judge(rows({"wikitext2": by_batch, "grokking": by_batch},
                                    *small_batches.KEYS)).word == verdict


@pytest.mark.parametrize(("costs", "best", "verdict"), [
    ((0.06, 0.06), 0, "holds"), ((0.06, 0.04), 0, "holds partly"),
    ((0.0, 0.0), -1, "holds partly"), ((0.04, 0.04), 0, "does not hold")])
def test_the_verdict_on_warm_up(costs, best, verdict):
    tree = {str(n): {"without": valley(best, 1 + cost), "with": valley(0, 1.0)}
            for n, cost in enumerate(costs)}
    assert warm_up.judge(rows(tree, *warm_up.KEYS)).word == verdict


@pytest.mark.parametrize(("factor", "verdict"), [
    (2.1, "holds"), (1.3, "holds partly"), (1.1, "does not hold")])
def test_the_verdict_on_fluctuation(factor, verdict):
    assert lion_oscillation.fluctuation([9.0, 9.0, 1.0, 2.0, 1.0, 2.0]) == pytest.approx(1.0)
    steady = [0.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    measured = race({"AdamW": (valley(0), steady),
                     "Lion": (valley(0), [factor * loss for loss in steady])})
    assert lion_oscillation.judge(measured).word == verdict


def test_doublings_by_hand():
    rates = [1.0, 2.0, 4.0, 8.0]
    assert lookahead_sensitivity.doublings(rates, [3.0, 1.0, 1.0, 3.0], 2.0) == 2.0
    assert lookahead_sensitivity.doublings(rates, [1.0, 1.0, math.inf, 1.0], 2.0) == 1.0


@pytest.mark.parametrize(("wider", "verdict"), [
    ((True, True), "holds"), ((True, False), "holds partly"), ((False, False), "does not hold")])
def test_the_verdict_on_lookahead(wider, verdict):
    flat = {lr: [value / 4 for value in row] for lr, row in valley(0).items()}
    tree = {str(n): {"without": valley(0), "with": flat if is_wider else valley(0)}
            for n, is_wider in enumerate(wider)}
    assert lookahead_sensitivity.judge(rows(tree, *lookahead_sensitivity.KEYS)).word == verdict


@pytest.mark.parametrize(("steps", "verdict"), [
    (11.2, "holds"), (10.5, "holds partly"), (10.1, "does not hold")])
def test_the_verdicts_on_races(steps, verdict):
    for module, base, other in ((adaptive_eps, "AdamW", "AdaEps"),
                                (spectral_clipping, "Muon", "clip")):
        measured = race({base: (valley(0), [1.0, *crossing(steps)]),
                         other: (valley(0), [1.0, 0.5, 0.5])})
        curves = sweeps.curves_of(measured)
        assert sweeps.speedups(curves[base], curves[other]) == [pytest.approx(steps / 10 - 1)]
        assert module.judge(measured).word == verdict


def race(of: dict[str, tuple[dict, list[float]]]):
    """Optimizer -> grid, losses of one seed's run, as the rows of a race."""
    measured = rows({name: grid for name, (grid, _) in of.items()}, "optimizer", "lr")
    for name, (_, losses) in of.items():
        measured += rows({sweeps.EVERY * n: [loss] for n, loss in enumerate(losses, 1)}, "step",
                         axis="curve", optimizer=name)
    return measured


def crossing(at: float) -> tuple[float, float]:
    """Points at steps 10 and 15 of a line that is at 0.5 at step `at`."""
    return 0.5 + (at - 10) / 10, 0.5 - (15 - at) / 10


def test_steadiness_counts_for_spectral_clipping():
    base, fast = (valley(0), [1.0, *crossing(12.0)]), [1.0, 0.5, 0.5]
    unsteady = {lr: row if lr <= 1 else [None] * 2 for lr, row in valley(0).items()}
    for grid, verdict in ((valley(0), "holds"), (unsteady, "holds partly")):
        measured = race({"Muon": base, "clip": (grid, fast)})
        assert spectral_clipping.judge(measured).word == verdict


@pytest.mark.parametrize(("losses", "verdict"), [
    ((1.0005, 1.0005), "holds"), ((1.003, 0.998), "holds partly"),
    ((1.002, 1.002), "does not hold")])
def test_the_verdict_on_eight_bits(losses, verdict):
    tree = {"AdamW": [1.0, 1.0], "8-bit AdamW": list(losses)}
    assert eight_bit.judge(rows(tree, "optimizer", axis="paired")).word == verdict


@pytest.mark.parametrize(("steps", "gradients", "verdict"), [
    (0.51, 0.52, "holds"), (0.51, 0.525, "holds partly"), (0.53, 0.53, "does not hold")])
def test_the_verdict_on_sam(steps, gradients, verdict):
    measured = rows({0.05: [0.528, 0.528], 0.2: [0.4, 0.6]}, "rho")  # 0.528 is the better mean
    measured += rows({"as many steps": [steps] * 2, "as many gradients": [gradients] * 2}, "budget")
    assert sam_accuracy.gains(measured)["as many steps"] == pytest.approx([52.8 - 100 * steps] * 2)
    assert sam_accuracy.judge(measured).word == verdict


@pytest.mark.parametrize(("accuracy", "loss", "verdict"), [
    ((0.6, 0.6), (1.0, 1.0), "holds"), ((0.6, 0.6), (1.0, 2.0), "holds partly"),
    ((0.6, 0.4), (2.0, 2.0), "does not hold")])
def test_the_verdict_on_adaptive_radii(accuracy, loss, verdict):
    def entry(constant, gap):
        return {"constant": {0.1: [constant] * 2}, "lr": {0.1: [constant] * 2},
                "gap": {0.1: list(gap)}}

    tree = {"cifar": entry(0.5, accuracy), "wikitext2": entry(1.5, loss)}
    assert adaptive_radius.judge(rows(tree, "task", "schedule", "rho",
                                      optimizer="SAM-AdamW")).word == verdict


@pytest.mark.parametrize(("bf16", "eight", "verdict"), [
    ((0.004, -0.002, 0.002), (0.001, -0.001, 0.0), "holds"),  # 0 +- 0.25 %
    ((0.001, -0.001, 0.0), (0.01, -0.005, -0.001), "holds partly"),  # mean 0.13 %, up to 2.1 %
    ((0.001, -0.001, 0.0), (0.002, 0.003, 0.0025), "holds partly"),  # small, but on every seed
    ((0.004, 0.005, 0.006), (0.002, 0.003, 0.0025), "does not hold")])
def test_the_verdict_on_the_stored_shear(bf16, eight, verdict):
    full = [2.0, 4.0, 3.0]
    losses = {"full": full, "bf16": [loss * (1 + d) for loss, d in zip(full, bf16, strict=True)],
              "8bit": [loss * (1 + d) for loss, d in zip(full, eight, strict=True)]}
    measured = rows(losses, "storage", task="cifar", mode="AGA")
    assert shear_storage.differences(measured, "8bit") == [pytest.approx(eight)]
    assert shear_storage.judge(measured).word == verdict


# --- tiny runs


def test_a_tiny_run_of_each_is_written_and_reads_back(tiny_data, tmp_path, monkeypatch, capsys):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setitem(sweeps.curve.__kwdefaults__, "count", 5)
    monkeypatch.setattr(sweeps, "LONGEST", 3)
    monkeypatch.setattr(batch_size, "BATCHES", (2, 4))
    monkeypatch.setattr(small_batches, "BATCHES", {"wikitext2": (2,), "grokking": (30,)})
    monkeypatch.setattr(small_batches, "PAIR_STEPS", 1)
    monkeypatch.setattr(lookahead_sensitivity, "POINTS", 2)
    monkeypatch.setattr(spectral_clipping, "GRID",
                        {"optimizer": list(spectral_clipping.RULES)[:2]})
    monkeypatch.setattr(spectral_clipping, "GUESS", math.inf)  # five steps learn nothing
    monkeypatch.setattr(sam, "STEPS", dict.fromkeys(sam.STEPS, 2))
    monkeypatch.setattr(sam, "RATES", (1e-3,))
    monkeypatch.setattr(sam, "RADII", (0.05,))
    names = ["adaptive_radius", "sam_accuracy", "batch_size", "small_batches", "warm_up",
             "lion_oscillation", "lookahead_sensitivity", "adaptive_eps", "spectral_clipping",
             "eight_bit", "shear_storage"]
    assert command.main([*names, "--seeds", "1", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("written to") == len(names)
    check_pages(names, tmp_path)
