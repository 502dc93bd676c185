"""At rates where K-FAC blows up, does a trust region survive?"""

import math

from exp.report.tables import markdown, number
from exp.theory.radius import radius_sweep
from exp.theory.radius.radius_sweep import EVALUATIONS, final_loss

SAYS = "At rates where K-FAC blows up, TR-Muon survives at RMSuon's cost"
SOURCE = "paper 003 (the spike on TR-Muon)"
RULE = ("a run has blown up if it diverged or ends above the loss of guessing. At 10, 100 and 1000 "
        "times its rate, each rule's own: holds if K-FAC (little damping, no KL clip) blows up "
        "somewhere, and wherever it does TR-Muon does not, in any seed; holds partly if TR-Muon "
        "blows up in fewer runs than both K-FAC and RMSuon; else it does not hold.")
FACTORS = (10, 100, 1000)
GUESSING = {"cifar": math.log(10), "wikitext2": math.log(2048)}  # nats
LABELS = ("K-FAC", "K-FAC, damping 1e-5, no KL clip", "Muon", "RMSuon", "TR-Muon curvature, line")
FRAGILE, PLAIN, OURS = LABELS[1], "RMSuon", LABELS[-1]


def measure(seeds: list[int]) -> dict:
    """Task -> rule -> factor -> losses, one a seed (null: diverged)."""
    found: dict = {}
    for task in GUESSING:
        for label in LABELS:
            settings = radius_sweep.RULES[label]
            for factor in FACTORS:
                losses = [final_loss(task, {**settings, "lr": settings["lr"] * factor}, seed)
                          for seed in seeds]
                found.setdefault(task, {}).setdefault(label, {})[str(factor)] = [
                    loss if math.isfinite(loss) else None for loss in losses]
    return found


def blown_up(task: str, losses: list[float | None]) -> int:
    """How many of these runs diverged or ended above the loss of guessing."""
    return sum(loss is None or loss > GUESSING[task] for loss in losses)


def count(found: dict, label: str) -> int:
    """Runs of a rule that blew up, over tasks, rates and seeds."""
    return sum(blown_up(task, losses) for task, rules in found.items()
               for losses in rules[label].values())


def judge(found: dict) -> str:
    """The verdict of RULE."""
    where = [(task, factor) for task, rules in found.items() for factor in rules[FRAGILE]
             if blown_up(task, rules[FRAGILE][factor])]
    if where and not any(blown_up(task, found[task][OURS][factor]) for task, factor in where):
        return "holds"
    fewer = all(count(found, OURS) < count(found, other) for other in (FRAGILE, PLAIN))
    return "holds partly" if fewer else "does not hold"


def figure(found: dict) -> str:
    """How many runs blew up."""
    runs = sum(len(losses) for rules in found.values() for losses in rules[OURS].values())
    return f"blown up, of {runs} runs: " + ", ".join(
        f"{label} {count(found, label)}" for label in LABELS)


def render(found: dict) -> str:
    """Mean losses of the runs that did not diverge, and how many blew up, a table a task."""
    text = (f"Training loss (nats) after {EVALUATIONS} gradient evaluations as in radius_sweep, at "
            "multiples of the rate that each rule has there; mean over the seeds with a finite "
            "loss, and how many blew up.")
    for task, rules in found.items():
        lines = [(f"{task} (guessing: {number(GUESSING[task])})",
                  *(f"x {factor}" for factor in rules[OURS]))]
        for label, by_factor in rules.items():
            cells = []
            for losses in by_factor.values():
                finite = [loss for loss in losses if loss is not None]
                value = number(sum(finite) / len(finite)) if finite else "–"
                cells.append(f"{value} ({blown_up(task, losses)} of {len(losses)})")
            lines.append((f"{label}, lr0 {radius_sweep.RULES[label]['lr']:g}", *cells))
        text += "\n\n" + markdown(lines)
    return text
