"""Does a transformer need warm-up?"""

from pathlib import Path

from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.sweeps.grids import (
    MODEL_TEXT,
    STEPS,
    WARMUP,
    adamw,
    best_losses,
    best_of_grid,
    lowest,
    muon,
    plot_grids,
    rest,
    sgd,
    sweep,
)

SAYS = "Transformers nearly always need warm-up, else training is unstable"
SOURCE = "paper 002 (optimizer summary) 4.2"
RULE = ("holds if without warm-up the best loss of every rule, at its own best rate, is more than "
        "0.05 nats higher on the mean over seeds; holds partly if that is so for one of them, or "
        "if one's best rate is at most half as high; else it does not hold.")
WORSE = 0.05


def lion(lr: float) -> dict:
    """Lion with the decay that AdamW has at ten times the rate."""
    return {"name": "lion", "lr": lr, "weight_decay": 1.0}


def base(lr: float) -> dict:
    """ARS2-Neo Base, one rate for all its weights."""
    return {"name": "ars2_neo", "k": 0, "lr": lr, "betas": [0.9, 0.95], "weight_decay": 0.1,
            "energy_norm": "frobenius", "adamw": rest(lr)}


# Rule -> lr -> [optimizer] table, and where the grid begins.
RULES = {"SGD with momentum": (sgd, 2**-3), "AdamW": (adamw, 2**-7), "Lion": (lion, 2**-10),
         "Muon": (muon, 2**-4), "ARS2-Neo Base": (base, 2**-7)}
CONDITIONS = {"without": 0.0, "with": WARMUP}


def measure(seeds: list[int]) -> dict:
    """Rule -> "without" or "with" -> lr -> losses, one a seed (null: diverged)."""
    return {label: {name: sweep(rule, start, seeds, warmup=share)
                    for name, share in CONDITIONS.items()}
            for label, (rule, start) in RULES.items()}


def judge(found: dict) -> str:
    """The verdict of RULE."""
    worse = [lowest(by["without"]) - lowest(by["with"]) > WORSE for by in found.values()]
    lower = [best_of_grid(by["without"]) <= best_of_grid(by["with"]) / 2 for by in found.values()]
    return "holds" if all(worse) else "holds partly" if any(worse + lower) else "does not hold"


def figure(found: dict) -> str:
    """What doing without costs."""
    return "nats that doing without costs: " + ", ".join(
        f"{label} {lowest(by['without']) - lowest(by['with']):+.2f}" for label, by in found.items())


def render(found: dict) -> str:
    """Best rates and losses with and without, as a table."""
    lines = [("rule", "best lr without", "with", "loss without", "with", "what it costs")]
    for label, by in found.items():
        both = [best_losses(by[name]) for name in CONDITIONS]
        costs = [one - two for one, two in zip(*both, strict=True)]
        lines.append((label, *(number(best_of_grid(by[name])) for name in CONDITIONS),
                      *(interval(mean(losses)) for losses in both), interval(mean(costs))))
    return (f"{MODEL_TEXT} {STEPS} steps, linearly to zero; warm-up over {WARMUP:.0%} of them. One "
            "layer is the easy case: depth makes it harder.\n\n" + markdown(lines)
            + "\n\n![Loss over learning rate](warm_up.png)")


def plot(found: dict, path: Path) -> None:
    """Mean loss over learning rate, a panel a rule, with and without."""
    plot_grids(path, found, "{} warm-up", "held-out loss (nats)")
