"""Is Adam faster when its eps follows the gradient?"""

from exp.report.tables import interval
from exp.theory.sweeps.grids import adamw, percent, race, render_race, speedups

SAYS = "An eps that follows the gradient's scale makes Adam 10 to 20 % faster on small models"
SOURCE = "paper 002 (optimizer summary) 4.3 (optimizer/ada_eps.py)"
RULE = ("steps to the loss that both reach, each rule at its best rate: holds if AdamW needs at "
        "least 10 % more than AdaEps on the mean over seeds; holds partly if at least 2 % more; "
        "else it does not hold.")
HOLDS, PARTLY = 0.10, 0.02


def ada_eps(lr: float) -> dict:
    """AdaEps in the place of AdamW."""
    return {**adamw(lr), "name": "ada_eps"}


RULES = {"AdamW": (adamw, 2**-7), "AdaEps": (ada_eps, 2**-7)}


def measure(seeds: list[int]) -> dict:
    """The race of sweeps.race."""
    return race(RULES, seeds)


def judge(found: dict) -> str:
    """The verdict of RULE."""
    gains = speedups(found["AdamW"]["curves"], found["AdaEps"]["curves"])
    gain = sum(gains) / len(gains)
    return "holds" if gain >= HOLDS else "holds partly" if gain >= PARTLY else "does not hold"


def figure(found: dict) -> str:
    """The speed-up."""
    gains = speedups(found["AdamW"]["curves"], found["AdaEps"]["curves"])
    return f"AdamW needs {interval(percent(gains))} % more steps"


def render(found: dict) -> str:
    """Rates, losses and the speed-up."""
    return render_race(found)
