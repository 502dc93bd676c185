"""The next setting of a chain: a pure function of the trials that the chain has made.

Trial 0 takes the defaults, trials 1 to 3 scrambled Sobol points that all arms of a study share in
unit coordinates, every later one the suggestion of Optuna's GPSampler, which is fed the chain's
trials with the normal scores of their ranks as values: no scale has to be chosen for misses.
"""

import warnings
import zlib
from collections.abc import Sequence

from scipy import stats
from scipy.stats import qmc

from exp.tune.space import AXES, Choice, Range, Space, significant

START = 4  # trials before the sampler: the defaults and START - 1 points
GIVE_UP = 4  # a trial may take at least cap / GIVE_UP
STOP_FACTOR = 2.0  # and at least this many times the cost of the chain's best


def suggest(space: Space, defaults: dict, trials: Sequence[dict], name: str) -> dict:
    """The parameters of the next trial.

    defaults: the parameters of trial 0. trials: the records so far, in order. name: "task/study",
    which seeds points and sampler without the arm's name: they are the same for every arm.
    """
    if not trials:
        return defaults
    if len(trials) < START:
        shares = shared_points(name, space)[len(trials) - 1]
        return {key: axis.at(shares[key]) for key, axis in space.items()}
    return _ask(space, trials, study_seed(f"{name}/{len(trials)}"))


def study_seed(name: str) -> int:
    """CRC-32 of "task/study" or of "task/study/trial"."""
    return zlib.crc32(name.encode())


def shared_points(name: str, space: Space) -> list[dict[str, float]]:
    """The START - 1 points of a study in the unit cube: those of AXES from one scrambled Sobol
    sequence, an axis of the arm's own from another, so that the former are the same for all."""
    shares = _sobol(len(AXES), study_seed(name))
    own = [key for key in space if key not in AXES]
    if own:
        more = _sobol(len(own), study_seed(f"{name}/own"))
        shares = [row + extra for row, extra in zip(shares, more, strict=True)]
    return [dict(zip((*AXES, *own), row, strict=True)) for row in shares]


def _sobol(axes: int, seed: int) -> list[list[float]]:
    return qmc.Sobol(axes, scramble=True, rng=seed).random(START)[:START - 1].tolist()


def rank(trial: dict) -> tuple:
    """What trials of a chain are ordered by, the best first: hits by cost, misses by grade
    (record.py), diverged ones last; ties by index."""
    if trial["status"] == "diverged":
        return 2, 0.0, trial["index"]
    if trial["cost"] is None:
        return 1, -trial["grade"], trial["index"]
    return 0, trial["cost"], trial["index"]


def winner(trials: Sequence[dict]) -> dict:
    """The best trial, the defaults among them."""
    return min(trials, key=rank)


def limit(trials: Sequence[dict], cap: int) -> int:
    """The gradient evaluations that the next trial may take: a trial that is given up there cannot
    win its chain, whatever the optimizer."""
    best = min((trial["cost"] for trial in trials if trial["cost"] is not None), default=cap)
    return int(min(cap, max(cap / GIVE_UP, STOP_FACTOR * best)))


def normal_scores(trials: Sequence[dict]) -> list[float]:
    """norm.ppf((rank + 1/2) / n) of every trial, the lowest for the best."""
    order = sorted(range(len(trials)), key=lambda index: rank(trials[index]))
    scores = stats.norm.ppf([(place + 0.5) / len(trials) for place in range(len(trials))])
    return [float(scores[order.index(index)]) for index in range(len(trials))]


def _ask(space: Space, trials: Sequence[dict], seed: int) -> dict:
    """One suggestion of a new GPSampler that has seen the trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {key: _distribution(axis) for key, axis in space.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPSampler announces that it is experimental
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=START)
        study = optuna.create_study(sampler=sampler)
        for trial, score in zip(trials, normal_scores(trials), strict=True):
            study.add_trial(optuna.trial.create_trial(
                params=_coordinates(space, trial["params"]), distributions=distributions,
                value=score))
        asked = study.ask(distributions).params
    return {key: axis.values[asked[key]] if isinstance(axis, Choice) else significant(asked[key])
            for key, axis in space.items()}


def _distribution(axis: Range | Choice):
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(axis, Choice):
        return IntDistribution(0, len(axis.values) - 1)
    return FloatDistribution(axis.low, axis.high, log=True)


def _coordinates(space: Space, params: dict) -> dict:
    """Parameters as the sampler takes them: inside the box, choices by their index."""
    return {key: axis.index(params[key]) if isinstance(axis, Choice) else axis.clip(params[key])
            for key, axis in space.items()}
