"""Does Lookahead make the learning rate matter less?"""

import math
from pathlib import Path

from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.sweeps.grids import (
    MODEL_TEXT,
    STEPS,
    adamw,
    best_of_grid,
    curve,
    lowest,
    plot_grids,
    sgd,
    written,
)

SAYS = "Lookahead lowers the sensitivity to the learning rate"
SOURCE = "paper 002 (optimizer summary) 4.2; Zhang et al. 2019, arXiv 1907.08610"
RULE = ("how many doublings of the learning rate end within 0.1 nats of the best loss of the two, "
        "with Lookahead and without: holds if there are more with it, on the mean over seeds, for "
        "both SGD and AdamW; holds partly if for one; else it does not hold.")
NEAR = 0.1  # nats
GRID = 9  # points, a factor of two apart
RULES = {"SGD with momentum": (sgd, 2**-6), "AdamW": (adamw, 2**-11)}
WITH = {"without": {}, "with": {"lookahead": {}}}


def measure(seeds: list[int]) -> dict:
    """Rule -> "without" or "with" -> lr -> losses, one a seed (null: diverged)."""
    found: dict = {}
    for label, (rule, start) in RULES.items():
        for name, wrapper in WITH.items():
            found.setdefault(label, {})[name] = written({
                lr: [curve({**rule(lr), **wrapper}, seed)[-1] for seed in seeds]
                for lr in (start * 2.0**n for n in range(GRID))})
    return found


def doublings(rates: list[float], losses: list[float], level: float) -> float:
    """How long the stretches of log2(lr) are on which the loss, linear between points, is at most
    `level`; beside an infinite point no stretch counts."""
    length = 0.0
    for i in range(len(rates) - 1):
        low, high = sorted((losses[i], losses[i + 1]))
        if not math.isfinite(high) or low > level:
            continue
        share = 1.0 if high <= level else (level - low) / (high - low)
        length += share * math.log2(rates[i + 1] / rates[i])
    return length


def widths(by: dict) -> dict[str, list[float]]:
    """"without" and "with" -> doublings of each seed."""
    found: dict = {name: [] for name in by}
    rows = {name: [[math.inf if v is None else v for v in row] for row in grid.values()]
            for name, grid in by.items()}
    for seed in range(len(next(iter(rows["with"])))):
        losses = {name: [row[seed] for row in values] for name, values in rows.items()}
        level = min(map(min, losses.values())) + NEAR
        for name, values in losses.items():
            found[name].append(doublings([float(lr) for lr in by[name]], values, level))
    return found


def judge(found: dict) -> str:
    """The verdict of RULE."""
    wider = [sum(found_widths["with"]) > sum(found_widths["without"])
             for found_widths in map(widths, found.values())]
    return "holds" if all(wider) else "holds partly" if any(wider) else "does not hold"


def figure(found: dict) -> str:
    """Widths without and with."""
    return "doublings of lr within 0.1 nats, without and with: " + "; ".join(
        f"{label} {mean(widths(by)['without']).value:.2g}, {mean(widths(by)['with']).value:.2g}"
        for label, by in found.items())


def render(found: dict) -> str:
    """Widths, best rates and losses as a table."""
    lines = [("rule", "Lookahead", "doublings within 0.1 nats", "best lr", "loss there")]
    for label, by in found.items():
        for name in WITH:
            lines.append((label, name, interval(mean(widths(by)[name])),
                          number(best_of_grid(by[name])), number(lowest(by[name]))))
    return (f"{MODEL_TEXT} {STEPS} steps, warm-up, then linearly to zero; {GRID} rates, each twice "
            "the one before. Lookahead with its defaults.\n\n" + markdown(lines)
            + "\n\n![Loss over learning rate](lookahead_sensitivity.png)")


def plot(found: dict, path: Path) -> None:
    """Mean loss over learning rate, a panel a rule, with and without."""
    plot_grids(path, found, "{} Lookahead", "held-out loss (nats)")
