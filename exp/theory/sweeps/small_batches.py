"""Is Muon worse than AdamW where the batch is small?"""

from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.sweeps.grids import (
    MODEL_TEXT,
    STEPS,
    adamw,
    best_losses,
    best_of_grid,
    grid,
    muon,
    sweep,
    written,
)
from exp.theory.training import built, training_loss

SAYS = "Below a batch size of 256, Muon is worse than AdamW"
SOURCE = "paper 002 (optimizer summary) 4.5: small batches make msign's direction random"
RULE = ("the loss of each at its own best rate: holds if on both tasks Muon's is higher than "
        "AdamW's on the mean over seeds at every batch below 256; holds partly if at the smallest "
        "batch of a task; else it does not hold. (Sequences are counted on Wikitext-2, pairs on "
        "modular addition.)")
LIMIT = 256
RULES = {"AdamW": (adamw, 2**-8), "Muon": (muon, 2**-6)}
BATCHES = {"wikitext2": (2, 8, 32, 128), "grokking": (16, 64, 256, 1024)}
PAIR_STEPS = 100


def pair_losses(optimizer: dict, batch: int, seeds: list[int]) -> list[float]:
    """Training losses (nats) of modular addition after PAIR_STEPS steps, one a seed."""
    return [training_loss(built(optimizer, seed, data={"batch_size": batch}), PAIR_STEPS)
            for seed in seeds]


def measure(seeds: list[int]) -> dict:
    """Task -> batch -> rule -> lr -> losses, one a seed (null: diverged)."""
    found: dict = {}
    for task, batches in BATCHES.items():
        for rule, (table, start) in RULES.items():
            for batch in batches:
                if task == "wikitext2":
                    by_rate = sweep(table, start, seeds, batch_size=batch)
                else:
                    by_rate = written(grid(
                        lambda lr, table=table, batch=batch: pair_losses(table(lr), batch, seeds),
                        start))
                found.setdefault(task, {}).setdefault(str(batch), {})[rule] = by_rate
                start = best_of_grid(by_rate)
    return found


def differences(by_rule: dict) -> list[float]:
    """Muon's loss less AdamW's, each at its best rate, seed by seed."""
    losses = [best_losses(by_rule[rule]) for rule in ("Muon", "AdamW")]
    return [ours - theirs for ours, theirs in zip(*losses, strict=True)]


def judge(found: dict) -> str:
    """The verdict of RULE."""
    worse = [[sum(differences(by_rule)) > 0 for batch, by_rule in by_batch.items()
              if int(batch) < LIMIT] for by_batch in found.values()]
    if all(map(all, worse)):
        return "holds"
    return "holds partly" if any(at[0] for at in worse) else "does not hold"


def figure(found: dict) -> str:
    """Muon's loss less AdamW's at every batch size."""
    return "Muon less AdamW: " + "; ".join(
        f"{task} " + ", ".join(f"{mean(differences(by_rule)).value:+.2g} at {batch}"
                               for batch, by_rule in by_batch.items())
        for task, by_batch in found.items())


def render(found: dict) -> str:
    """Best rates, losses and their difference at every batch size, as a table."""
    lines = [("task", "batch", "AdamW: best lr", "loss", "Muon: best lr", "loss",
              "Muon less AdamW")]
    for task, by_batch in found.items():
        for batch, by_rule in by_batch.items():
            cells = []
            for rule in RULES:
                cells += [number(best_of_grid(by_rule[rule])),
                          interval(mean(best_losses(by_rule[rule])))]
            lines.append((task, batch, *cells, interval(mean(differences(by_rule)))))
    return (f"{MODEL_TEXT} {STEPS} steps at every batch size, warm-up, then linearly to zero. "
            f"Modular addition as published, training loss (nats) after {PAIR_STEPS} steps at a "
            "constant rate. Each rule at the best rate of its own grid, in factors of two, for "
            "every batch size.\n\n" + markdown(lines))
