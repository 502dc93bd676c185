"""What a gradient evaluation takes with each winner of a leaderboard, all side by side.

The fresh runs come from several machines and days, so that their own seconds compare arms badly.
"""

import importlib
import tomllib
from collections.abc import Callable

from exp.bench.timing import interleaved, spread
from exp.bench.training import steps
from exp.harness.build import Built, build
from exp.harness.config import complete

STEPS = 20  # timed together: whole cycles of what is done at every second, fifth or tenth step
ROUNDS = 9


def measure(task: str, texts: dict[str, str], rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """arm -> {"ms", "ms_low", "ms_high"}: the median over rounds of what a gradient evaluation
    took in STEPS training steps, the optimizer's work in it, and its quartiles.

    They are a run's first steps, in which AGA syncs more often than later.
    texts: arm -> the config that runs its winner. Raises ConfigError for one that is no longer
    understood.
    """
    module = importlib.import_module(f"exp.{task}.train")
    functions = {arm: Counted(build(complete(tomllib.loads(text), module.TASK), module.TASK,
                                    module.loss_fn)) for arm, text in texts.items()}
    found = {}
    for arm, seconds in interleaved(functions, rounds).items():
        timed = [taken for taken in seconds if taken is not None]
        counts = functions[arm].counts[-len(timed):]  # without the warm-up
        found[arm] = spread("ms", [1e3 * taken / count for taken, count
                                   in zip(timed, counts, strict=True)])
    return found


class Counted:
    """STEPS training steps a call; `counts`: the gradient evaluations of each call."""

    def __init__(self, built: Built) -> None:
        self.objective = built.objective
        self.train: Callable[[], None] = steps(built, STEPS)
        self.counts: list[int] = []

    def __call__(self) -> None:
        before = self.objective.gradient_evaluations
        self.train()
        self.counts.append(self.objective.gradient_evaluations - before)
