"""Does the best learning rate stay where it is when the model becomes wider?"""

from pathlib import Path

from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.sweeps.grids import FACTOR, best_rates, exponent, grid, lowest, plot_grids, written
from exp.theory.training import built, training_loss

SAYS = "ARS is scale invariant: its best learning rate does not depend on the width"
SOURCE = "paper 2.4"
RULE = ("holds if the best learning rate of ARS2-Neo Base as released (energy_norm literal) goes "
        "with width^a, |a| at most 0.25 on the mean over seeds (half a doubling from the smallest "
        "to the largest width); holds partly if that is so with another energy norm only; else it "
        "does not hold.")
WIDTHS = (64, 128, 256)
STEPS, BATCH, P, FRACTION = 32, 128, 31, 0.5
BOUND = 0.25
REST = {"lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.0}  # embeddings, head, biases
ARS = {"name": "ars2_neo", "k": 0, "betas": [0.9, 0.98]}
# Rule -> settings, and a power of two near its best learning rate: the grid begins there.
RULES = {
    "ARS2-Neo Base, literal": ({**ARS, "energy_norm": "literal"}, 2**-8),
    "ARS2-Neo Base, frobenius": ({**ARS, "energy_norm": "frobenius"}, 2**-5),
    "ARS2-Neo Base, rms": ({**ARS, "energy_norm": "rms"}, 2**-5),
    "RMSuon": ({"name": "rmsuon", "betas": [0.9, 0.98]}, 2**-6),
    "Muon": ({"name": "muon"}, 2**-3),
    "AdamW": ({"name": "adamw", "routing": "role", "betas": [0.9, 0.98]}, 2**-7),
}


def final_loss(settings: dict, width: int, lr: float, seed: int) -> float:
    """Mean loss over the training pairs after STEPS steps; infinite if it diverged."""
    return training_loss(built(
        {**settings, "lr": lr, "weight_decay": 0.0, "adamw": REST}, seed,
        data={"p": P, "fraction": FRACTION, "batch_size": BATCH},
        model={"d_model": width, "d_head": width // 4, "d_mlp": 4 * width}), STEPS)



def measure(seeds: list[int]) -> dict:
    """Rule -> width -> lr -> losses, one a seed (null: diverged)."""
    found: dict = {}
    for label, (settings, start) in RULES.items():
        for width in WIDTHS:
            by_rate = grid(lambda lr, settings=settings, width=width: [
                final_loss(settings, width, lr, seed) for seed in seeds], start)
            found.setdefault(label, {})[str(width)] = written(by_rate)
    return found



def exponents(by_width: dict) -> list[float]:
    """a of each seed."""
    widths = [float(width) for width in by_width]
    rates = [best_rates(by_rate) for by_rate in by_width.values()]
    return [exponent(widths, list(seed)) for seed in zip(*rates, strict=True)]


def judge(found: dict) -> str:
    """The verdict of RULE."""
    constant = {label: abs(sum(a) / len(a)) <= BOUND for label, by_width in found.items()
                if label.startswith("ARS2") and (a := exponents(by_width))}
    if constant["ARS2-Neo Base, literal"]:
        return "holds"
    return "holds partly" if any(constant.values()) else "does not hold"


def figure(found: dict) -> str:
    """The exponents of ARS."""
    return "lr ~ width^a, a " + ", ".join(
        f"{mean(exponents(by_width)).value:.2g} ({label.rsplit(', ', 1)[-1]})"
        for label, by_width in found.items() if label.startswith("ARS2"))


def render(found: dict) -> str:
    """The best rates as a table, beside the losses there."""
    widths = list(next(iter(found.values())))
    lines = [("rule", *(f"best lr, width {w}" for w in widths), "exponent a",
              *(f"loss there, {w}" for w in widths))]
    for label, by_width in found.items():
        lines.append((label, *(interval(mean(best_rates(by_width[w]))) for w in widths),
                      interval(mean(exponents(by_width))),
                      *(number(lowest(by_width[w])) for w in widths)))
    return (f"The grokking model with p = {P}, {FRACTION:.0%} of the pairs, heads of a quarter and "
            f"an MLP of four times the width; batches of {BATCH}. Loss over the training pairs "
            f"(nats) after {STEPS} steps. The rate is that of the hidden matrices: embeddings, "
            f"head and biases have AdamW at {REST['lr']:g} everywhere; no decay. The grid goes in "
            f"factors of {FACTOR:g}, best rates are interpolated on it, "
            "lr ~ width^a. If the spectral norm of the update is what must stay put, the formulas "
            "say a = 0 for Muon, -1 for literal (norm of the step: lr sqrt(m n)), -1/2 for "
            "frobenius, rms and RMSuon.\n\n" + markdown(lines)
            + "\n\n![Loss over learning rate](learning_rate_width.png)")



def plot(found: dict, path: Path) -> None:
    """Mean loss over learning rate, a panel a rule, a line a width."""
    plot_grids(path, found, "width {}", "training loss (nats)", (0, 5))
