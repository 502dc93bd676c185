"""Detect arms that are the same update: equal weights after a few steps at equal settings."""

import hashlib
from collections.abc import Iterable, Iterator

from exp.bench.training import Steps
from exp.harness.build import build
from exp.harness.errors import ConfigError
from exp.harness.task import task_named
from exp.tune.arms import Arm
from exp.tune.terms import settings_of

STEPS = 20
SETTINGS = {"lr": 1e-3, "aux_lr": 1e-3, "decay_time": 1.0, "memory": "middle"}


def require_distinct(arms: Iterable[Arm], terms: dict) -> None:
    """Raise ConfigError for the first arm that `unfit` yields."""
    for _, reason in unfit(arms, terms):
        raise ConfigError(reason)


def unfit(arms: Iterable[Arm], terms: dict) -> Iterator[tuple[str, str]]:
    """Train every arm at equal settings for 20 steps at the task's tiny scale. Yield (arm, reason)
    for one that cannot be trained, and for one whose weights equal those of an earlier arm, except
    the noise arm and the rungs, which equal the baseline.
    """
    excluded = {terms["noise_arm"], *terms.get("ladder", ())}
    names: dict[str, str] = {}
    for arm in arms:
        if arm.name in excluded:
            continue
        try:
            other = names.setdefault(_weights(arm, terms), arm.name)
        except ConfigError as error:
            yield arm.name, f"{arm.name}: {error}"
            continue
        if other != arm.name:
            yield arm.name, (f"{arm.name} and {other} are the same algorithm: after {STEPS} steps "
                             "at equal settings their weights are equal bit for bit")


def _weights(arm: Arm, terms: dict) -> str:
    """Return a hash of the weights after the steps."""
    task = task_named(terms["task"])
    tiny = {**terms, "set": [*terms["set"], *task.scale("tiny")]}
    table = arm.settings({**arm.defaults, **SETTINGS}, terms["cap"])
    built = build(settings_of(tiny, arm, table, 0, terms["cap"]), task)
    Steps(built, STEPS)()
    digest = hashlib.sha256()
    for weight in built.model.parameters():
        digest.update(weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
