"""exp.theory's sweeps over learning rates, and the hypotheses of the optimizer summary."""

import math

import pytest
import torch
from test_theory import rows, spread
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
from exp.report.rows import Row, Rows
from exp.theory import __main__ as command
from exp.theory import sam, sweeps, training


def valley(bests=(0.0,) * 3, floors=(0.0,) * 3, ends=(-12, 12)) -> dict:
    """A grid whose losses are, of each seed, a parabola over log2(lr) with its bottom at
    log2(lr) = best."""
    return {2.0**n: [floor + (n - best) ** 2 for best, floor in zip(bests, floors, strict=True)]
            for n in range(ends[0], ends[1] + 1)}


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
    fast, slow = [3.0, 1.0, 0.5], [5.0, 3.0, 1.0]
    assert sweeps.slowdown([slow], [fast]).value == pytest.approx(1.5)
    both = sweeps.slowdown([slow, fast], [fast, slow])
    assert both.value == pytest.approx(1.0)  # the geometric mean of 3 / 2 and 2 / 3
    assert sweeps.percent_more(sweeps.slowdown([fast], [slow])).value == pytest.approx(-100 / 3)


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


@pytest.mark.parametrize(("slopes", "by", "verdict"), [
    ((1, 1, 1), 0.02, "holds"), ((1, 1, 0), 0.02, "holds"), ((1, 0.5, 0), 0.02, "does not hold"),
    ((0, 1, 1), 0.02, "does not hold"), ((1, 1, 1), 1.0, "inconclusive")])
def test_the_verdict_on_batch_size(slopes, by, verdict):
    bests, by_batch = [-6.0] * 3, {}
    for batch, slope in zip((2, 8, 32, 128), (*slopes, 0), strict=True):
        by_batch[batch] = valley(bests)
        bests = [best + 2 * a  # a batch four times as large
                 for best, a in zip(bests, spread(slope, by), strict=True)]
    assert list(batch_size.exponents(by_batch).values()) == [
        pytest.approx(spread(slope, by)) for slope in slopes]
    assert batch_size.judge(rows({"SGD": by_batch, "AdamW": by_batch},
                                 *batch_size.KEYS)).word == verdict
    laws = {1: "linear", 0.5: "between", 0: "constant"}
    assert batch_size.laws(by_batch) == [laws[a] if by < 1 else "undecided" for a in slopes]


@pytest.mark.parametrize(("middle", "verdict"), [
    (spread(1.1), "holds"), (spread(0.9), "does not hold"), ((0.8, 1.0, 1.3), "inconclusive")])
def test_the_verdict_on_small_batches(middle, verdict):
    def rules(losses):
        return {"AdamW": valley(floors=[1.0] * 3), "Muon": valley([3.0] * 3, losses)}

    by_batch = {2: rules(spread(1.1)), 128: rules(middle), 256: rules(spread(0.5))}
    assert small_batches.differences(by_batch[2]) == pytest.approx(spread(0.1))
    assert small_batches.judge(rows({"wikitext2": by_batch, "grokking": by_batch},
                                    *small_batches.KEYS)).word == verdict


@pytest.mark.parametrize(("costs", "verdict"), [
    (spread(0.08), "holds"), (spread(0.0), "does not hold"), (spread(0.05), "inconclusive")])
def test_the_verdict_on_warm_up(costs, verdict):
    tree = {str(n): {"without": valley(floors=[1 + cost for cost in of_rule]),
                     "with": valley(floors=[1.0] * 3)}
            for n, of_rule in enumerate((spread(0.09), costs))}
    assert warm_up.judge(rows(tree, *warm_up.KEYS)).word == verdict


@pytest.mark.parametrize(("factors", "verdict"), [
    ((2.2, 2.3, 2.4), "holds"), ((1.1, 1.2, 1.3), "does not hold"),
    ((1.1, 2.0, 3.0), "inconclusive")])
def test_the_verdict_on_fluctuation(factors, verdict):
    assert lion_oscillation.fluctuation([9.0, 9.0, 1.0, 2.0, 1.0, 2.0]) == pytest.approx(1.0)
    steady = [0.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    measured = race({"AdamW": (valley(), [steady] * 3),
                     "Lion": (valley(), [[f * loss for loss in steady] for f in factors])})
    assert lion_oscillation.ratio_of(measured).value == pytest.approx(math.prod(factors) ** (1 / 3))
    assert lion_oscillation.judge(measured).word == verdict


def test_doublings_by_hand():
    rates = [1.0, 2.0, 4.0, 8.0]
    assert lookahead_sensitivity.doublings(rates, [3.0, 1.0, 1.0, 3.0], 2.0) == 2.0
    assert lookahead_sensitivity.doublings(rates, [1.0, 1.0, math.inf, 1.0], 2.0) == 1.0


@pytest.mark.parametrize(("scales", "verdict"), [
    ((0.25, 0.3, 0.2), "holds"), ((1.1, 1.2, 1.3), "does not hold"),
    ((0.1, 1.5, 1.0), "inconclusive")])
def test_the_verdict_on_lookahead(scales, verdict):
    # A loss of scale * log2(lr)^2 is within 0.1 over 2 * 0.1 / scale doublings (scale above 0.1).
    def flat(scales):
        return {lr: [scale * loss for scale, loss in zip(scales, losses, strict=True)]
                for lr, losses in valley().items()}

    grids = {"without": valley(), "with": flat((0.25, 0.3, 0.2))}
    assert lookahead_sensitivity.widths(grids)["with"] == pytest.approx([0.8, 0.2 / 0.3, 1.0])
    tree = {"SGD": grids, "AdamW": {**grids, "with": flat(scales)}}
    assert lookahead_sensitivity.judge(rows(tree, *lookahead_sensitivity.KEYS)).word == verdict


@pytest.mark.parametrize(("steps", "verdict"), [
    ((11.2, 11.3, 11.4), "holds"), ((10.1, 10.2, 10.3), "does not hold"),
    ((10.0, 11.0, 12.0), "inconclusive")])
def test_the_verdict_on_a_race(steps, verdict):
    measured = race({"AdamW": (valley(), [[1.0, *crossing(at)] for at in steps]),
                     "AdaEps": (valley(), [[1.0, 0.5, 0.5]] * 3)})
    assert adaptive_eps.judge(measured).word == verdict


def race(of: dict[str, tuple[dict, list[list[float]]]]):
    """Optimizer -> grid, losses of each seed's run, as the rows of a race."""
    measured = rows({name: grid for name, (grid, _) in of.items()}, "optimizer", "lr")
    for name, (_, curves) in of.items():
        for seed, losses in enumerate(curves, 1):
            measured += Rows(Row("curve", seed, loss, optimizer=name,
                                 settings={"step": sweeps.EVERY * n})
                             for n, loss in enumerate(losses, 1))
    return measured


def crossing(at: float) -> tuple[float, float]:
    """Points at steps 10 and 15 of a line that is at 0.5 at step `at`."""
    return 0.5 + (at - 10) / 10, 0.5 - (15 - at) / 10


SEEDS = (0.0,) * 5  # headrooms are whole doublings: of equal ones five seeds are enough
STABLE, DIVERGES = valley(SEEDS, SEEDS), {
    lr: row if lr <= 1 else [None] * 5 for lr, row in valley(SEEDS, SEEDS).items()}


@pytest.mark.parametrize(("at", "grid", "verdict", "why"), [
    (12.0, STABLE, "holds", ""), (12.0, DIVERGES, "does not hold", ""),
    (10.2, STABLE, "does not hold", ""),
    (12.0, valley(SEEDS, SEEDS, (-2, 2)), "inconclusive", "no rate was high enough to fail")])
def test_the_verdict_on_spectral_clipping_needs_speed_and_stability(at, grid, verdict, why):
    base = [[1.0, *crossing(at + 0.01 * seed)] for seed in range(5)]
    plain = grid if why else STABLE
    assert spectral_clipping.headroom(plain) == [math.inf if why else 2.0] * 5
    found = spectral_clipping.judge(race({
        "Muon": (plain, base), "clip": (grid, [[1.0, 0.5, 0.5]] * 5)}))
    assert (found.word, found.judgement.why) == (verdict, why)


@pytest.mark.parametrize(("losses", "verdict"), [
    ((1.0004, 1.0005, 1.0006), "holds"), ((1.002, 1.0025, 1.003), "does not hold"),
    ((1.003, 0.998, 1.0), "inconclusive")])
def test_the_verdict_on_eight_bits(losses, verdict):
    tree = {"AdamW": [1.0] * 3, "8-bit AdamW": list(losses)}
    assert eight_bit.judge(rows(tree, "optimizer", axis="paired")).word == verdict


@pytest.mark.parametrize(("gradients", "verdict"), [
    ((0.51, 0.511, 0.512), "holds"), ((0.53, 0.531, 0.532), "does not hold"),
    ((0.5, 0.52, 0.54), "inconclusive")])
def test_the_verdict_on_sam(gradients, verdict):
    measured = rows({0.05: [0.528] * 3, 0.2: [0.4, 0.6, 0.5]}, "rho")  # 0.528 is the better mean
    measured += rows({"as many steps": [0.5] * 3, "as many gradients": list(gradients)}, "budget")
    assert sam_accuracy.gains(measured)["as many steps"] == pytest.approx([2.8] * 3)
    assert sam_accuracy.judge(measured).word == verdict


@pytest.mark.parametrize(("loss", "verdict"), [
    (spread(1.0), "holds"), (spread(2.0), "does not hold"), ((1.0, 1.4, 2.0), "inconclusive")])
def test_the_verdict_on_adaptive_radii(loss, verdict):
    def entry(constant, lr, gap):
        return {name: {0.1: list(values)} for name, values in (
            ("constant", [constant] * 3), ("lr", lr), ("gap", gap))}

    tree = {"cifar": entry(0.5, spread(0.4), spread(0.6)),
            "wikitext2": entry(1.5, spread(1.6), loss)}
    assert adaptive_radius.judge(rows(tree, "task", "schedule", "rho",
                                      optimizer="SAM-AdamW")).word == verdict


@pytest.mark.parametrize(("eight", "verdict"), [
    ((0.001, -0.001, 0.0), "holds"),  # at most 0.17 %
    ((0.01, 0.012, 0.011), "does not hold"), ((0.01, -0.005, -0.001), "inconclusive")])
def test_the_verdict_on_the_stored_shear(eight, verdict):
    full = [2.0, 4.0, 3.0]
    losses = {"full": full, "bf16": full,
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
