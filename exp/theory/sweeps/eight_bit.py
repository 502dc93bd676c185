"""What does 8-bit state cost Adam?"""

from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.sweeps.grids import MODEL_TEXT, STEPS, adamw, best_of_grid, curve, percent, sweep

SAYS = "8-bit Adam loses less than 0.1 %"
SOURCE = "paper 002 (optimizer summary) 4.3; Dettmers et al. 2021, arXiv 2110.02861"
RULE = ("the relative difference of held-out loss from AdamW's on the same seeds at AdamW's best "
        "rate: holds if the upper end of its 95 % interval is below 0.1 %; holds partly if the "
        "mean is; else it does not hold.")
BOUND = 0.1  # percent
PAIRS = 4  # runs for each seed asked for: differences are small


def eight_bit(lr: float) -> dict:
    """AdamW with 8-bit state, all of it: no tensor is too small."""
    return {**adamw(lr), "name": "adamw_8bit", "min_8bit_size": 0}


def measure(seeds: list[int]) -> dict:
    """{"rates": AdamW's grid, "AdamW": losses, "8-bit": losses}, one loss a pair."""
    by_rate = sweep(adamw, 2**-7, seeds)
    best = best_of_grid(by_rate)
    pairs = [PAIRS * (seed - 1) + n for seed in seeds for n in range(1, PAIRS + 1)]
    return {"rates": by_rate, "AdamW": [curve(adamw(best), seed)[-1] for seed in pairs],
            "8-bit": [curve(eight_bit(best), seed)[-1] for seed in pairs]}


def differences(found: dict) -> list[float]:
    """(8-bit - AdamW) / AdamW, pair by pair."""
    return [ours / theirs - 1 for ours, theirs in zip(found["8-bit"], found["AdamW"], strict=True)]


def judge(found: dict) -> str:
    """The verdict of RULE."""
    estimate = percent(differences(found))
    if estimate.high < BOUND:
        return "holds"
    return "holds partly" if estimate.value < BOUND else "does not hold"


def figure(found: dict) -> str:
    """The difference."""
    return f"loss {interval(percent(differences(found)))} % higher"


def render(found: dict) -> str:
    """Losses and their difference as a table."""
    lines = [("rule", "loss", "difference, %"),
             ("AdamW", interval(mean(found["AdamW"])), "–"),
             ("8-bit AdamW", interval(mean(found["8-bit"])), interval(percent(differences(found))))]
    return (f"{MODEL_TEXT} {STEPS} steps, warm-up, then linearly to zero, lr "
            f"{number(best_of_grid(found['rates']))}; {len(found['AdamW'])} pairs of runs.\n\n"
            + markdown(lines))
