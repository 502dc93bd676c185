"""Does the best learning rate grow in proportion to the batch?"""

import itertools
from pathlib import Path

from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.sweeps.grids import (
    FACTOR,
    MODEL_TEXT,
    STEPS,
    adamw,
    best_of_grid,
    best_rates,
    exponent,
    lowest,
    muon,
    plot_grids,
    sgd,
    sweep,
)

SAYS = "The best learning rate is proportional to the batch size"
SOURCE = "paper 002 (optimizer summary) 2.7, 3.6; past a critical batch size it is said to fail"
RULE = ("best lr ~ batch^a between neighbouring batch sizes, mean over seeds; linear where a is "
        "above 0.75, as a square root from 0.25 to 0.75, constant below. Holds if SGD with "
        "momentum, AdamW and Muon are each linear at least once, and everywhere before the first "
        "pair where the rate is constant; holds partly if one of them is linear anywhere; else it "
        "does not hold.")
BATCHES = (2, 8, 32, 128)
LINEAR, CONSTANT = 0.75, 0.25
# Rule -> lr -> [optimizer] table, and where the grid of the smallest batch begins.
RULES = {"SGD with momentum": (sgd, 2**-4), "AdamW": (adamw, 2**-8), "Muon": (muon, 2**-6)}


def measure(seeds: list[int]) -> dict:
    """Rule -> batch -> lr -> losses, one a seed (null: diverged)."""
    found: dict = {}
    for label, (rule, start) in RULES.items():
        for batch in BATCHES:
            by_rate = sweep(rule, start, seeds, batch_size=batch)
            found.setdefault(label, {})[str(batch)] = by_rate
            start = best_of_grid(by_rate)
    return found


def exponents(by_batch: dict) -> dict[tuple[str, str], list[float]]:
    """Neighbouring batch sizes -> a of each seed."""
    rates = {batch: best_rates(by_rate) for batch, by_rate in by_batch.items()}
    return {(one, two): [exponent((float(one), float(two)), pair)
                         for pair in zip(rates[one], rates[two], strict=True)]
            for one, two in itertools.pairwise(by_batch)}


def laws(by_batch: dict) -> list[str]:
    """"linear", "square root" or "constant" for each pair of neighbours."""
    slopes = [sum(a) / len(a) for a in exponents(by_batch).values()]
    return ["linear" if a > LINEAR else "square root" if a >= CONSTANT else "constant"
            for a in slopes]


def judge(found: dict) -> str:
    """The verdict of RULE."""
    every = [laws(by_batch) for by_batch in found.values()]

    def is_linear(kinds: list[str]) -> bool:
        before = list(itertools.takewhile(lambda kind: kind != "constant", kinds))
        return bool(before) and set(before) == {"linear"}

    if all(map(is_linear, every)):
        return "holds"
    return "holds partly" if any("linear" in kinds for kinds in every) else "does not hold"


def figure(found: dict) -> str:
    """The law between neighbouring batch sizes, rule by rule."""
    return "; ".join(f"{label}: {', '.join(laws(by_batch))}" for label, by_batch in found.items())


def render(found: dict) -> str:
    """Best rates, then the exponents between neighbours, as tables."""
    batches = list(next(iter(found.values())))
    rates = [("best lr at a batch of", *batches, *(f"loss, {b}" for b in batches))]
    slopes = [("a", *(f"{one} to {two}" for one, two in itertools.pairwise(batches)), "law")]
    for label, by_batch in found.items():
        rates.append((label, *(interval(mean(best_rates(by_batch[b]))) for b in batches),
                      *(number(lowest(by_batch[b])) for b in batches)))
        slopes.append((label, *(interval(mean(a)) for a in exponents(by_batch).values()),
                       ", ".join(laws(by_batch))))
    return (f"{MODEL_TEXT} {STEPS} steps at every batch size (so a larger batch sees more data), "
            "warm-up over 10 %, then linearly to zero. The grid goes in factors of "
            f"{FACTOR:g}, best rates are interpolated on it. Muon's rate moves that of the rest "
            "along, which has 0.15 of it.\n\n" + markdown(rates) + "\n\n" + markdown(slopes)
            + "\n\n![Loss over learning rate](batch_size.png)")


def plot(found: dict, path: Path) -> None:
    """Mean loss over learning rate, a panel a rule, a line a batch size."""
    plot_grids(path, found, "batch {}", "held-out loss (nats)")
