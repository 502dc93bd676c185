"""A challenge: compare one new arm with a board, and read the result after each study.

The arm gets the board's points, seeds and sampler, study by study. The anytime interval and the
e-value stay valid under optional stopping, so a challenge may be interrupted and continued at will.
It writes a board of its own: the first studies of all arms of the board, and those of the new arm.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from exp.harness.errors import ConfigError
from exp.jobs.launch import Local
from exp.jobs.queue import run_jobs
from exp.report.judgement import holm
from exp.report.tables import number
from exp.tune.arms import Arm
from exp.tune.board import entry_of, require_board, save
from exp.tune.chain import Chain
from exp.tune.distinct import require_distinct
from exp.tune.estimate import ANYTIME_FROM, interim_results
from exp.tune.inference import EQUAL, e_value, studies_needed, wins_a_study
from exp.tune.terms import IN_PROGRESS

LEAST = 6  # minimum of studies before an interval that excludes 1 ends a challenge


class Over(Exception):
    """Ends a challenge: the result is decided, or the time is up."""


def challenge(board: dict, arm: Arm, outputs: Path, workers: int, minutes: float | None) -> Path:
    """Run studies of the arm, at most as many as the board has, until the result is decided or
    `minutes` have passed. Return the path of the challenge's board.

    Raises ConfigError for an arm that equals one of the board's, and if no study is complete.
    """
    terms = board["terms"]
    known = [Arm.of(name, entry) for name, entry in board["arms"].items()]
    require_distinct([*known, arm], terms)
    path = outputs / "challenge" / f"{arm.name.replace(':', '_')}.json"
    count = len(board["arms"][terms["baseline"]]["studies"])
    _announce(arm, board, path)
    mine, partners = _chains(board, arm, outputs, count)
    done: dict[Chain, dict | None] = {chain: chain.study() for chain in (*mine, *partners)}

    def read_result(chain: Chain, _status: int) -> None:
        done[chain] = chain.study()
        whole = _whole(mine, partners, done)
        if whole and chain.number == whole:
            row = _write(path, board, arm, mine[:whole], partners[:whole], done)
            print(_line(whole, row), flush=True)
            if _is_enough(row, whole):
                raise Over

    with _limited(minutes):
        run_jobs([chain for pair in zip(mine, partners or mine, strict=True)
                  for chain in dict.fromkeys(pair) if done[chain] is None], Local(workers),
                 read_result)
    whole = _whole(mine, partners, done)
    if not whole:
        raise ConfigError("no study is complete yet; the same command continues from here")
    _write(path, board, arm, mine[:whole], partners[:whole], done)
    print(*_sentences(require_board(path), arm.name), f"written: {path}", sep="\n")
    return path


@contextmanager
def _limited(minutes: float | None) -> Iterator[None]:
    """Raise `Over` within the context after `minutes`, never if None. Suppress `Over` on exit."""
    def raise_over(*_: object) -> None:
        raise Over

    before = signal.signal(signal.SIGALRM, raise_over)
    signal.setitimer(signal.ITIMER_REAL, 60 * (minutes or 0))
    try:
        yield
    except Over:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _chains(board: dict, arm: Arm, outputs: Path, count: int) -> tuple[list[Chain], list[Chain]]:
    """Return the arm's chains, and the baseline's too if this machine does not reproduce a run of
    the board bit for bit, else []."""
    terms, base = board["terms"], board["terms"]["baseline"]

    def chains(of: Arm) -> list[Chain]:
        return [Chain(of, number, terms, outputs / "tune" / terms["task"] / of.name
                      / f"study{number}") for number in range(1, count + 1)]

    entry = board["arms"][base]
    baseline = Chain(Arm.of(base, entry), 1, terms, outputs / "tune" / terms["task"] / "machine")
    if baseline.repeats(entry["studies"][0]):
        return chains(arm), []
    print(f"This machine does not reproduce the board's {base} bit for bit: its studies run here "
          "too, and the board's other arms are not compared.")
    return chains(arm), chains(baseline.arm)


def _whole(mine: list[Chain], partners: list[Chain], done: dict) -> int:
    """Return the largest K such that the first K studies are complete."""
    states = [all(done[chain] for chain in pair)
              for pair in zip(mine, partners or mine, strict=True)]
    return [*states, False].index(False)


def _write(path: Path, board: dict, arm: Arm, mine: list[Chain], partners: list[Chain],
           done: dict) -> dict:
    """Write the challenge's own board and return the arm's row."""
    terms, base, count = board["terms"], board["terms"]["baseline"], len(mine)
    if partners:
        arms = {base: {**board["arms"][base], "studies": [done[chain] for chain in partners]}}
    else:
        excluded = (terms["noise_arm"], *terms.get("ladder", ()))
        arms = {name: {**entry, "studies": entry["studies"][:count]}
                for name, entry in board["arms"].items() if name not in excluded}
    arms[arm.name] = entry_of(arm, [done[chain] for chain in mine])
    terms = {**terms, "studies": max(terms["studies"], count + 1), "noise_arm": None, "ladder": {}}
    results = interim_results(terms, arms, count)
    save(path, {"schema": IN_PROGRESS, "terms": terms, "arms": arms, "results": results})
    return results["arms"][arm.name]


def _is_enough(row: dict, count: int) -> bool:
    """Whether the anytime interval excludes 1 after six studies, or lies within 5 % of it."""
    low, high = row.get("anytime", (0, 2))
    return (count >= LEAST and not low <= 1 <= high) or (low >= 1 - EQUAL and high <= 1 + EQUAL)


# --- printed text


def _announce(arm: Arm, board: dict, path: Path) -> None:
    base = board["terms"]["baseline"]
    theirs = board["arms"][base]["axes"]
    for key, axis in arm.record()["axes"].items():
        print(f"search range of {key}: {_span(axis)} ({base}: {_span(theirs.get(key))})")
    earlier = [other for other in path.parent.glob("*.json") if other != path and any(
        entry["optimizer"]["name"] == arm.optimizer["name"]
        for name, entry in require_board(other)["arms"].items() if name == other.stem)]
    if earlier:
        print(f"This is version {len(earlier) + 1} of {arm.optimizer['name']}; earlier ones: "
              f"{', '.join(other.stem for other in sorted(earlier))}")


def _span(axis: list | dict | None) -> str:
    if axis is None:
        return "none"
    return ", ".join(axis["choices"]) if isinstance(axis, dict) else (
        f"{number(axis[0])} to {number(axis[1])}")


def _line(count: int, row: dict) -> str:
    if count < 2:
        return f"study {count}: complete"
    anytime = "" if count < ANYTIME_FROM else ", anytime [{}, {}]".format(
        *map(number, row["anytime"]))
    enough = "; may stop" if _is_enough(row, count) else ""
    return f"study {count}: ratio {number(row['ratio'])}{anytime}, e {number(row['e'])}{enough}"


def _sentences(board: dict, name: str) -> list[str]:
    """Return three sentences: the arm against the baseline, against the board, and how many further
    studies would decide."""
    rows, base = board["results"]["arms"], board["terms"]["baseline"]
    values = {arm: np.array(row["values"]) for arm, row in rows.items()}
    count, row = len(values[name]), rows[name]
    if count < 2:
        return [f"{name}: one study is complete; a comparison needs two."]
    d = {arm: values[name] - of_arm for arm, of_arm in values.items() if arm != name}
    variance, pooled = float(d[base].var(ddof=1)), board["results"]["pooled_sd"]**2
    interval = "no interval before the fourth study" if count < ANYTIME_FROM else (
        "anytime 95 % interval [{}, {}]".format(*map(number, row["anytime"])))
    wins = wins_a_study(float(d[base].mean()), variance, pooled, count)
    adjusted = dict(zip(d, holm([min(1.0, 1 / e_value(of_arm)) for of_arm in d.values()]),
                        strict=True))
    sides = {"cheaper than": [arm for arm in d if adjusted[arm] <= 0.05 and d[arm].mean() < 0],
             "dearer than": [arm for arm in d if adjusted[arm] <= 0.05 and d[arm].mean() > 0],
             "undecided against": [arm for arm in d if adjusted[arm] > 0.05]}
    effect = abs(float(d[base].mean())) or 1e-6
    spent = row["spent"] * board["arms"][name]["ms_per_evaluation"] / count / 6e4
    needed = max(0, studies_needed(variance, pooled, effect) - count)
    return [
        f"{name} costs {number(row['ratio'])} times what {base} does, {interval}, after {count} "
        f"studies; one more study of both would find it cheaper with probability {wins:.2f}.",
        "Against the board, Holm's correction over arms: " + "; ".join(
            f"{side} {', '.join(arms)}" for side, arms in sides.items() if arms) + ".",
        f"If the difference to {base} equals the estimate, {needed} more studies would "
        f"decide it, about {number(round(needed * spent, 1))} minutes of one core."]
