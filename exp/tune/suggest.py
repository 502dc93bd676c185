"""The next setting of a chain, a pure function of the chain's earlier trials.

Trial 0 takes the defaults. Trials 1 to 3 take scrambled Sobol points, which all arms of a study
share in unit coordinates. Each later trial takes the suggestion of Optuna's GPSampler. The sampler
sees the normal scores of the trials' ranks, so that misses need no numeric cost.
"""

import warnings
import zlib
from collections.abc import Sequence

from scipy import stats
from scipy.stats import qmc

from exp.tune.space import AXES, Choice, Range, Space, significant

START = 4  # trials before the sampler: the defaults and START - 1 points
GIVE_UP = 4  # a trial's limit is at least cap / GIVE_UP gradient evaluations,
STOP_FACTOR = 2.0  # and at least this multiple of the best cost so far in the chain


def suggest(space: Space, defaults: dict, trials: Sequence[dict], name: str) -> dict:
    """Return the parameters of the next trial.

    defaults: the parameters of trial 0. trials: the records so far, in order. name: "task/study",
    the seed of points and sampler; it excludes the arm, so that all arms share the seed.
    """
    if not trials:
        return defaults
    if len(trials) < START:
        shares = shared_points(name, space)[len(trials) - 1]
        return {key: axis.at(shares[key]) for key, axis in space.items()}
    return _ask(space, trials, study_seed(f"{name}/{len(trials)}"))


def study_seed(name: str) -> int:
    """Return the CRC-32 of "task/study" or "task/study/trial"."""
    return zlib.crc32(name.encode())


def shared_points(name: str, space: Space) -> list[dict[str, float]]:
    """Return the START - 1 points of a study in the unit cube, each {axis: coordinate}. AXES take
    one scrambled Sobol sequence and an arm's further axes a second one, so that all arms have the
    same coordinates on AXES."""
    shares = _sobol(len(AXES), study_seed(name))
    further_axes = [key for key in space if key not in AXES]
    if further_axes:
        further = _sobol(len(further_axes), study_seed(f"{name}/own"))
        shares = [row + extra for row, extra in zip(shares, further, strict=True)]
    return [dict(zip((*AXES, *further_axes), row, strict=True)) for row in shares]


def _sobol(axes: int, seed: int) -> list[list[float]]:
    return qmc.Sobol(axes, scramble=True, rng=seed).random(START)[:START - 1].tolist()


def rank(trial: dict) -> tuple:
    """Sort key of a chain's trials, best first: hits by cost, then misses by grade (record.py),
    then diverged trials; ties by index."""
    if trial["status"] == "diverged":
        return 2, 0.0, trial["index"]
    if trial["cost"] is None:
        return 1, -trial["grade"], trial["index"]
    return 0, trial["cost"], trial["index"]


def winner(trials: Sequence[dict]) -> dict:
    """Return the best trial. It may be trial 0, the defaults."""
    return min(trials, key=rank)


def limit(trials: Sequence[dict], cap: int) -> int:
    """Return the limit of the next trial in gradient evaluations: the cap until a trial has hit the
    target. Later limits are never below the best cost: a trial stopped there cannot have won."""
    best = min((trial["cost"] for trial in trials if trial["cost"] is not None), default=cap)
    return int(min(cap, max(cap / GIVE_UP, STOP_FACTOR * best)))


def normal_scores(trials: Sequence[dict]) -> list[float]:
    """Return norm.ppf((rank + 1/2) / n) of each trial, lowest for the best."""
    order = sorted(range(len(trials)), key=lambda index: rank(trials[index]))
    scores = stats.norm.ppf([(place + 0.5) / len(trials) for place in range(len(trials))])
    return [float(scores[order.index(index)]) for index in range(len(trials))]


def _ask(space: Space, trials: Sequence[dict], seed: int) -> dict:
    """Return the suggestion of a new GPSampler, given the trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {key: _distribution(axis) for key, axis in space.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPSampler warns that it is experimental
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=START)
        study = optuna.create_study(sampler=sampler)
        for trial, score in zip(trials, normal_scores(trials), strict=True):
            study.add_trial(optuna.trial.create_trial(
                params=_coordinates(space, trial["params"]), distributions=distributions,
                value=score))
        params = study.ask(distributions).params
    return {key: axis.values[params[key]] if isinstance(axis, Choice) else significant(params[key])
            for key, axis in space.items()}


def _distribution(axis: Range | Choice):
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(axis, Choice):
        return IntDistribution(0, len(axis.values) - 1)
    return FloatDistribution(axis.low, axis.high, log=True)


def _coordinates(space: Space, params: dict) -> dict:
    """Convert parameters for the sampler: numbers clipped to their range, choices to an index."""
    return {key: axis.index(params[key]) if isinstance(axis, Choice) else axis.clip(params[key])
            for key, axis in space.items()}
