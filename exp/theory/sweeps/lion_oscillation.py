"""Does Lion's loss fluctuate two to three times as much as AdamW's?"""

import itertools
import math

from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.sweeps.grids import MODEL_TEXT, STEPS, adamw, best_of_grid, curve, sweep
from exp.theory.sweeps.warm_up import lion

SAYS = "Lion's loss curve fluctuates two to three times as much as Adam's"
SOURCE = "paper 002 (optimizer summary) 4.4"
RULE = ("the root mean square change from step to step of the loss of a fixed batch, over the "
        "second half of a run at a constant rate, each rule at its best rate: holds if Lion's is "
        "at least twice AdamW's on the mean over seeds; holds partly if at least 1.2 times; else "
        "it does not hold.")
HOLDS, PARTLY = 2.0, 1.2
RULES = {"AdamW": (adamw, 2**-7), "Lion": (lion, 2**-10)}


def measure(seeds: list[int]) -> dict:
    """Rule -> {"rates": grid, "curves": the fixed batch's losses after each step, a row a seed}."""
    found = {}
    for label, (rule, start) in RULES.items():
        by_rate = sweep(rule, start, seeds, schedule="constant")
        best = best_of_grid(by_rate)
        found[label] = {"rates": by_rate, "curves": [
            [round(loss, 6) for loss in curve(rule(best), seed, schedule="constant", every=1)]
            for seed in seeds]}
    return found


def fluctuation(losses: list[float]) -> float:
    """Root mean square change from point to point over the second half, nats."""
    changes = [b - a for a, b in itertools.pairwise(losses[len(losses) // 2:])]
    return math.sqrt(sum(change**2 for change in changes) / len(changes))


def ratios(found: dict) -> list[float]:
    """Lion's fluctuation over AdamW's, seed by seed."""
    each = [[fluctuation(losses) for losses in found[rule]["curves"]] for rule in ("Lion", "AdamW")]
    return [ours / theirs for ours, theirs in zip(*each, strict=True)]


def judge(found: dict) -> str:
    """The verdict of RULE."""
    ratio = sum(ratios(found)) / len(ratios(found))
    return "holds" if ratio >= HOLDS else "holds partly" if ratio >= PARTLY else "does not hold"


def figure(found: dict) -> str:
    """The ratio of fluctuations."""
    return f"{interval(mean(ratios(found)))} times AdamW's"


def render(found: dict) -> str:
    """Rates, losses and fluctuations as a table."""
    lines = [("rule", "best lr", "final loss", "fluctuation (nats)")]
    for label, entry in found.items():
        lines.append((label, number(best_of_grid(entry["rates"])),
                      interval(mean([losses[-1] for losses in entry["curves"]])),
                      interval(mean([fluctuation(losses) for losses in entry["curves"]]))))
    return (f"{MODEL_TEXT} These are the fixed batch: what a training loss adds to its fluctuation "
            f"by changing the batch is the same for both and left out. {STEPS} steps, warm-up, "
            "then a constant rate, the best of a grid in factors of two.\n\n" + markdown(lines)
            + f"\n\nLion's over AdamW's: {interval(mean(ratios(found)))}.")
