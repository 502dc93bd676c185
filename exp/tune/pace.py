"""What a gradient evaluation takes with each winner of a leaderboard, all side by side.

The fresh runs come from several machines and days, so that their own seconds compare arms badly.
"""

import tomllib
from collections.abc import Callable, Sequence

from exp.bench.timing import interleaved, spread
from exp.bench.training import steps
from exp.harness.build import Built, build
from exp.harness.config import complete
from exp.harness.task import task_named

STEPS = 20  # timed together: whole cycles of what is done at every second, fifth or tenth step
ROUNDS = 9


def measure(task: str, texts: Sequence[str], rounds: int = ROUNDS) -> list[dict[str, float]]:
    """{"ms", "ms_low", "ms_high"} of each config: the median over rounds of what a gradient
    evaluation took in STEPS training steps, the optimizer's work in it, and its quartiles.

    They are a run's first steps, in which AGA syncs more often than later; what is done at every
    hundredth step falls out of the median.
    texts: the configs that run the winners. Raises ConfigError for one that is no longer
    understood.
    """
    functions = [Counted(build(complete(tomllib.loads(text), task_named(task)), task_named(task)))
                 for text in texts]
    found = []
    for function, seconds in zip(
            functions, interleaved(dict(enumerate(functions)), rounds).values(), strict=True):
        timed = [taken for taken in seconds if taken is not None]
        counts = function.counts[-len(timed):]  # without the warm-up
        found.append(spread("ms", [1e3 * taken / count for taken, count
                                   in zip(timed, counts, strict=True)]))
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
