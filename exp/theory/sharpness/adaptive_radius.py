"""Is a sharpness radius that follows the rate, or the gap, better than a constant one?"""

from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.sharpness.runs import (
    METRIC,
    RADII,
    SCHEDULES,
    STEPS,
    baseline,
    best_key,
    is_better,
    with_radius,
)

SAYS = "A SAM radius that follows the learning rate or the surrogate gap beats a constant one"
SOURCE = ("not in the paper; GSAM, arXiv 2203.08065 (rate); LE-SAM, arXiv "
          "2605.10183 (a budget of loss)")
RULE = ("each at the best of the same radii: holds if on every task one of the two is better than "
        "the constant one on every seed; holds partly if on one task; else it does not hold.")


def measure(seeds: list[int]) -> dict:
    """Task -> {"rate": AdamW's best, "AdamW": its values, "SAM": {schedule: {rho: a value a
    seed}}}."""
    found = {}
    for task in STEPS:
        lr, plain = baseline(task, seeds)
        found[task] = {"rate": lr, "AdamW": plain["as many steps"], "SAM": {
            schedule: with_radius(task, lr, schedule, seeds) for schedule in SCHEDULES}}
    return found


def at_best(task: str, by_radius: dict[str, list[float]]) -> list[float]:
    """The values of the best radius."""
    return by_radius[best_key(task, by_radius)]


def judge(found: dict) -> str:
    """The verdict of RULE."""
    def helps(task: str, schedule: str) -> bool:
        values = [at_best(task, found[task]["SAM"][key]) for key in (schedule, "constant")]
        return all(is_better(task, *pair) for pair in zip(*values, strict=True))

    helped = [any(helps(task, schedule) for schedule in ("lr", "gap")) for task in found]
    return "holds" if all(helped) else "holds partly" if any(helped) else "does not hold"


def figure(found: dict) -> str:
    """The means of each schedule at its best radius."""
    return "; ".join(
        f"{task} {METRIC[task]} " + ", ".join(
            f"{schedule} {number(mean(at_best(task, by_radius)).value)}"
            for schedule, by_radius in entry["SAM"].items())
        for task, entry in found.items())


def render(found: dict) -> str:
    """The best radius of every schedule, and the value there."""
    lines = [("task, metric", "AdamW", *(f"{schedule}: best rho, value" for schedule in SCHEDULES))]
    for task, entry in found.items():
        cells = []
        for by_radius in entry["SAM"].values():
            rho = best_key(task, by_radius)
            cells.append(f"{rho}: {interval(mean(by_radius[rho]))}")
        lines.append((f"{task}, {METRIC[task]}", interval(mean(entry["AdamW"])), *cells))
    radii = ", ".join(f"{rho:g}" for rho in RADII)
    steps = ", ".join(f"{task} {count}" for task, count in STEPS.items())
    rates = ", ".join(f"{task} {entry['rate']:g}" for task, entry in found.items())
    return (f"SAM around AdamW at AdamW's best rate ({rates}), which falls to zero; steps: "
            f"{steps}. Radii {radii}; the gap's begins there, its target is measured there. "
            "Held-out accuracy on 2000 images, else held-out loss (nats). Small models: "
            "ResNet-18 of width 4 on 2500 images, one layer of Qwen3 on Wikitext-2, modular "
            "addition with p = 31, where nothing generalizes in so few steps: guessing is ln 31 = "
            "3.43 nats, and a lower loss there is of a model that has learned less, so that a "
            "verdict that rests on it alone says little.\n\n" + markdown(lines))
