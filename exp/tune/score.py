"""Scores: the tuned time to the target, as in AlgoPerf (arXiv 2306.07179), and fresh seeds.

Each arm has several independent studies of equal budget; its tuned score is the median over
studies of the best trial, a miss being infinite. What is reported is the winners' runs on seeds
that the tuning never saw.
"""

import math
import statistics
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path

import optuna

from exp.harness.task import task_named
from exp.harness.toml import to_toml
from exp.jobs.finished import finished_run
from exp.jobs.freshness import kept_identity
from exp.jobs.queue import Job
from exp.tune.space import (
    Goal,
    Range,
    all_arms,
    arm_settings,
    axis_of,
    search_space,
    with_point,
)
from exp.tune.study import HOPELESS, digest, finished, trial_settings

EDGE = 0.1  # of a range, on its own scale
FIRST_FRESH_SEED = 101  # trials have their study's number


def study_record(goal: Goal, arm: str, study: optuna.Study) -> dict:
    """What is published of a study: a digest of its `terms`, the ranges of its `space`, every
    finished one of its `trials`, the one with the `defaults`, and the `text` of the config that
    runs its winner."""
    def plain(attributes: dict, value: float) -> dict:
        return {"settings": attributes["settings"], "value": _finite(value),
                **attributes["result"]}

    trials = [plain(*trial) for trial in finished(study)]
    defaults = [plain(*trial) for trial in finished(study, defaults=True)]
    record = {"terms": digest(study.user_attrs["terms"]), "space": ranges(arm), "trials": trials,
              "defaults": defaults[0] if defaults else None}
    best = winner(record)
    return record | {"text": winner_config(goal, arm, best, config_name(goal, arm)) if best else ""}


def ranges(arm: str) -> dict[str, list]:
    """The numbers that an arm searches: [low, high, "log" or "linear"] each."""
    return {key: [axis.low, axis.high, "log" if axis.log else "linear"]
            for key, axis in search_space(arm).items() if isinstance(axis, Range)}


def outdated(task: dict) -> list[str]:
    """The arms of one task of a leaderboard that search other ranges now than they did then."""
    today = {arm: ranges(arm) for arm in task["arms"].keys() & set(all_arms())}
    return [arm for arm, entry in task["arms"].items() if arm in today and any(
        study.get("space", today[arm]) != today[arm] for study in entry["studies"])]


def config_name(goal: Goal, arm: str) -> str:
    """What the config of an arm's winner is called."""
    return f"tuned_{goal.task}_{arm}"


def winner(record: dict) -> dict | None:
    """The best trial of a study; None if none reached the target."""
    reached = [trial for trial in record["trials"] if trial["value"] is not None]
    return min(reached, key=lambda trial: trial["value"]) if reached else None


def at_edges(record: dict) -> dict[str, float]:
    """What of a study's winner lies in the outermost EDGE of its range: beyond may be better."""
    best, space = winner(record), record.get("space", {})  # older records have no space
    shares = {key: axis_of(space[key]).share(best["settings"][key]) for key in space if best}
    return {key: best["settings"][key] for key, share in shares.items()
            if not EDGE <= share <= 1 - EDGE}


def tuned_score(records: list[dict], key: str = "gradient_evaluations") -> float:
    """Median over studies of the winner's cost; a study without a winner counts as infinite."""
    winners = map(winner, records)
    return statistics.median(math.inf if best is None else best[key] for best in winners)


def share_near_best(records: list[dict]) -> float:
    """Share of the search space that reaches the target in at most HOPELESS times the study's
    best; trials were never given up sooner than that."""
    near = total = 0
    for record in records:
        best = winner(record)
        total += len(record["trials"])
        if best is not None:
            near += sum(trial["value"] is not None and trial["value"] <= HOPELESS * best["value"]
                        for trial in record["trials"])
    return near / total if total else math.nan


def default_over_best(records: list[dict]) -> tuple[float, bool]:
    """How many times the tuned cost the defaults need, the (lower) median over studies, and
    whether they need more than that: they were given up there. A study whose defaults arrived and
    no trial did counts as 0, less than any; NaN where nothing tells."""
    ratios = []
    for record in records:
        best, defaults = winner(record), record["defaults"]
        if defaults is not None and best is not None:
            missed = defaults["value"] is None
            spent = defaults["limit"] if missed else defaults["value"]
            ratios.append((spent / best["value"], missed))
        elif defaults is not None and defaults["value"] is not None:
            ratios.append((0.0, False))
    return sorted(ratios)[(len(ratios) - 1) // 2] if ratios else (math.nan, False)


def performance_profile(costs: dict[str, dict[str, float]], arm: str, factor: float) -> float:
    """Share of tasks that `arm` does at most `factor` times dearer than the cheapest arm.

    costs: task -> arm -> cost, infinite for a miss.
    """
    solved = 0
    for arms in costs.values():
        cheapest = min(arms.values())
        solved += math.isfinite(arms[arm]) and arms[arm] <= factor * cheapest
    return solved / len(costs)


def representative(records: list[dict]) -> int | None:
    """The number, from 1, of the study with the median winner: the lower middle one of an even
    number; None if no study has a winner."""
    ranked = sorted((best["value"], number) for number, record in enumerate(records, 1)
                    if (best := winner(record)) is not None)
    return ranked[(len(ranked) - 1) // 2][1] if ranked else None


def shown_text(records: list[dict]) -> str:
    """The config that runs the winner of the representative study; "" where there is none."""
    number = representative(records)
    return records[number - 1]["text"] if number is not None else ""


def fresh_costs(task: dict, arm: str, axis: str = "gradient_evaluations"
                ) -> tuple[list[float | None], list[float]]:
    """What each fresh run of an arm spent to the target, None for a miss, and how long it was
    watched; in "gradient_evaluations", "epochs", "seconds" by the run's own clock, or "timed",
    seconds by the evaluations and the pace of the run's winner. task: one of a leaderboard.

    A study without a winner counts as a miss of every seed that the others' winners were run on:
    an arm gains nothing by the studies in which it found nothing. A miss is watched as long as the
    longest run of the arm, without any up to the cap: one that diverged early would not have
    arrived later. Both are empty where a winner was not run yet.
    """
    entry, terms = task["arms"][arm], task["terms"]

    def spent(run: dict) -> float:
        if axis == "epochs":
            return run["epochs"]
        if axis == "timed":
            evaluations = (run["curve"].get("gradient_evaluations") or [0])[-1]
            return evaluations * entry["studies"][run["study"] - 1]["pace"]["ms"] / 1e3
        return (run["curve"].get(axis) or [0])[-1]

    ends = [spent(run) for run in entry["fresh"]]
    times = [end if run["reached"] else None for run, end in zip(entry["fresh"], ends, strict=True)]
    winners = [winner(study) for study in entry["studies"]]
    if not ends and any(winners):
        return [], []
    times += [None] * winners.count(None) * terms["fresh_seeds"]
    longest = max(ends, default=terms["cap"])
    watched = [longest if time is None else time for time in times]
    return times, watched


def winner_config(goal: Goal, arm: str, trial: dict, name: str) -> str:
    """A config that runs a winner: its text. The first line is the command."""
    settings = trial_settings(goal, arm, trial["settings"], seed=42, limit=goal.cap)
    settings["optimizer"] = with_point(arm_settings(arm), trial["settings"])
    for key in ("device", "precision", "compile", "tensorboard", "diagnostics", "test"):
        settings["experiment"].pop(key, None)
    said = textwrap.fill(
        f"Written by exp.tune: the winner of a search for {goal.metric} {goal.target:g} in the "
        f"fewest gradient evaluations. Searched: {', '.join(trial['settings'])}.",
        98, initial_indent="# ", subsequent_indent="# ")
    return (f"# python -m exp.{goal.task}.train --config config/{name}.toml\n{said}\n"
            f"{to_toml(settings)}")


def fresh_seeds(count: int) -> range:
    """The seeds that winners are run on."""
    return range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + count)


def fresh_jobs(goal: Goal, arm: str, records: list[dict], outputs: Path,
               seeds: Sequence[int]) -> list[Job]:
    """The winner of each study on fresh seeds; its config is written beside the runs."""
    found = []
    for number, record in enumerate(records, 1):
        if not record["text"]:
            continue
        folder = outputs / goal.task / arm / f"{arm}-winner{number}"
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / f"{arm}.toml"
        config.write_text(record["text"], encoding="utf-8")
        found += [Job(goal.task, config, seed, folder / f"seed{seed}") for seed in seeds]
    return found


def fresh_records(jobs: list[Job], published: dict | None = None) -> dict[Job, dict]:
    """The finished ones of these runs, each with the study it comes from.

    published: what stands of the arm among the results. Where this machine has no such run, the
    one that stands there counts, if the settings of that study's winner are the same.
    """
    standing = {} if published is None else {
        (run["study"], run["seed"]): run for run in published["fresh"]}
    found = {}
    for job in jobs:
        study = int(job.folder.parent.name.rsplit("-winner", 1)[1])
        kept = finished_run(job.folder, task_named(job.task))
        if kept and kept[1].counts_as(job.identity()):
            found[job] = {"study": study, "seed": job.seed, **kept[0]}
        elif (run := standing.get((study, job.seed))) and _counts(
                run, published["studies"][study - 1]["text"], job):
            found[job] = run
    return found


def _counts(run: dict, text: str, job: Job) -> bool:
    """Whether a published run of the config `text` counts as the job."""
    try:
        settings = tomllib.loads(text)
    except ValueError:
        return False
    kept = kept_identity(settings, run.get("recipes", {}), task_named(job.task))
    return kept.counts_as(job.identity())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

