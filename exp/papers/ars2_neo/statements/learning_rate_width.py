"""Is the best learning rate independent of the model's width?"""

import math
from collections.abc import Iterable

from exp.report.evidence import sample
from exp.report.judgement import judge_number
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict
from exp.theory.training import built, training_loss

WIDTHS = (64, 128, 256)
STEPS, BATCH, P, FRACTION = 32, 128, 31, 0.5
BOUND = 0.25
REST = {"lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.0}  # embeddings, head, biases
ARS = {"name": "ars2_neo", "k": 0, "betas": [0.9, 0.98]}
# Optimizer -> settings, and the first learning rate of its grid, a power of two near the best.
RULES: dict[str, tuple[dict, float]] = {
    "ARS2-Neo Base, literal": ({**ARS, "energy_norm": "literal"}, 2**-8),
    "ARS2-Neo Base, frobenius": ({**ARS, "energy_norm": "frobenius"}, 2**-5),
    "ARS2-Neo Base, rms": ({**ARS, "energy_norm": "rms"}, 2**-5),
    "RMSuon": ({"name": "rmsuon", "betas": [0.9, 0.98]}, 2**-6),
    "Muon": ({"name": "muon"}, 2**-3),
    "AdamW": ({"name": "adamw", "routing": "role", "betas": [0.9, 0.98]}, 2**-7),
}
GRID = {"optimizer": RULES, "width": WIDTHS}
KEYS = ("optimizer", "width", "lr")


def measure(seeds: list[int], optimizer: str, width: int) -> Iterable[Row]:
    """Return the grid of one optimizer at one width."""
    settings, start = RULES[optimizer]
    grid = sweeps.sweep(lambda lr: [final_loss(settings, width, lr, seed) for seed in seeds], start)
    return sweeps.grid_rows(grid, seeds)


def final_loss(settings: dict, width: int, lr: float, seed: int) -> float:
    """Return the mean loss over the training pairs after STEPS steps; infinity if it diverged."""
    return training_loss(built(
        {**settings, "lr": lr, "weight_decay": 0.0, "adamw": REST}, seed,
        data={"p": P, "fraction": FRACTION, "batch_size": BATCH},
        model={"d_model": width, "d_head": width // 4, "d_mlp": 4 * width}), STEPS)


def exponents(by_width: dict[int, sweeps.Grid]) -> list[float]:
    """Return the exponent a per seed: lr ~ width^a."""
    return [sweeps.exponent(list(by_width), rates)
            for rates in zip(*map(sweeps.best_rates, by_width.values()), strict=True)]


def judge(rows: Rows) -> Verdict:
    """Judge by the exponent of ARS as released; the text also gives those of the other energy
    norms."""
    slopes = {name.rsplit(", ", 1)[-1]: sample(exponents(by_width))
              for name, by_width in rows.tree(*KEYS).items() if name.startswith("ARS2")}
    return Verdict(
        judge_number(slopes["literal"], 0.0, (-BOUND, BOUND), runs=math.inf),
        "exponent a in lr ~ width^a: " + ", ".join(f"{interval(a.estimate)} ({name})"
                                       for name, a in slopes.items()))


def tables(rows: Rows) -> dict:
    """Return a table of best rates (geometric means over seeds) and their losses."""
    widths = rows.levels("width")
    return {"rates": [
        ("rule", *(f"best lr, width {w}" for w in widths), "exponent a",
         *(f"loss there, {w}" for w in widths)),
        *((name, *map(sweeps.mean_best_rate, by_width.values()), exponents(by_width),
           *map(sweeps.lowest, by_width.values())) for name, by_width in rows.tree(*KEYS).items())]}


def figure(rows: Rows) -> dict:
    """Return mean loss over learning rate: one panel per optimizer, one line per width."""
    return sweeps.grids_figure(rows.tree(*KEYS), "width {}", "training loss (nats)", ylim=(0, 5))
