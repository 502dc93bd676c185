"""Milliseconds per gradient evaluation of a board's winners, timed interleaved in one process.

Fresh runs come from several machines and days, so their wall times do not compare arms fairly.
"""

import statistics

from exp.bench.timing import interleaved
from exp.bench.training import Steps
from exp.harness.build import Built, build
from exp.harness.task import task_named
from exp.tune.arms import Arm
from exp.tune.terms import rung, settings_of

STEPS = 20  # timed together: whole periods of work done every second, fifth or tenth step
ROUNDS = 9


def time_winners(board: dict, rounds: int = ROUNDS) -> None:
    """Set `ms_per_evaluation` of every arm, and `paced` to True. The time is the median over its
    studies' winners of the median over rounds of STEPS training steps, with the optimizer's work.

    These are the first steps of a run, in which AGA syncs more often than later. Raises ConfigError
    for settings that today's code does not accept.
    """
    functions: dict[tuple[str, int], Counted] = {}
    for name, entry in board["arms"].items():
        for study in entry["studies"]:
            functions[name, study["number"]] = Counted(_built(board["terms"], name, entry, study))
    seconds = interleaved(functions, rounds)
    for name, entry in board["arms"].items():
        entry |= {"paced": True, "ms_per_evaluation": statistics.median(
            functions[key].milliseconds(seconds[key]) for key in functions if key[0] == name)}


def _built(terms: dict, name: str, entry: dict, study: dict) -> Built:
    arm, task, terms = Arm.of(name, entry), task_named(terms["task"]), rung(terms, name)
    table = arm.settings(study["trials"][study["winner"]]["params"], terms["cap"])
    return build(settings_of(terms, arm, table, study["number"], terms["cap"]), task)


class Counted:
    """STEPS training steps per call; `counts`: the gradient evaluations of each call."""

    def __init__(self, built: Built) -> None:
        self.objective = built.objective
        self.train = Steps(built, STEPS)
        self.counts: list[int] = []

    def __call__(self) -> None:
        before = self.objective.gradient_evaluations
        self.train()
        self.counts.append(self.objective.gradient_evaluations - before)

    def milliseconds(self, seconds: list[float | None]) -> float:
        """Return milliseconds per gradient evaluation, the median over the timed rounds. seconds:
        per round, None where it was not timed."""
        timed = [taken for taken in seconds if taken is not None]
        counts = self.counts[-len(timed):]  # without the warm-up
        return statistics.median(1e3 * taken / count
                                 for taken, count in zip(timed, counts, strict=True))
