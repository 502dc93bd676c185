"""Recommend an arm and its setting for a held-out task from the boards of other tasks.

A candidate is the best winner of an arm on one task, a setting that means the same on every task.
Its score on a task is a log ratio of evaluations to the tuned baseline: of costs in a race, and
minus the log of the baseline's budget on an annealed board. The recommended candidate has the least
mean score over the other tasks. Its regret is its score on the held-out task minus that of the best
arm tuned there.
"""

import math
from pathlib import Path

import numpy as np

from exp.harness.errors import ConfigError
from exp.report.jsonfile import write_json
from exp.report.tables import Lines, page, table
from exp.tune.board import board_path, read_board, require_board
from exp.tune.inference import Ladder
from exp.tune.probe import value

Moved = dict[tuple[str, str], dict]  # (from, to) -> content of that transfer's file


def regrets(boards: dict[str, dict], moved: Moved) -> list[dict]:
    """Return one row per task with transfers to it from at least one other task.

    boards: task -> board. A row has the `choice`, {"arm", "from"}, and four regrets, in log units:
    `regret` of the choice, `baseline_moved` of the best candidate of the baseline's,
    `baseline_default` of the baseline's defaults on the tuning seeds, and `random`, the mean over
    candidates. Raises ConfigError for an annealed board without the baseline's ladder.
    """
    rows = []
    for task, board in boards.items():
        others = [other for other in boards if (other, task) in moved]
        scores = {(arm, source): _mean_score(arm, source, others, boards, moved)
                  for source in others for arm in moved[source, task]["arms"]
                  if arm in _tuned(boards[source])}
        candidates = {key: score for key, score in scores.items() if score is not None}
        if not candidates:
            continue
        base, tuned = board["terms"]["baseline"], _tuned(board)
        lost = {(arm, source): _moved_score(board, moved[source, task], arm) - min(tuned.values())
                for arm, source in candidates}
        best = min(candidates, key=lambda key: candidates[key])
        of_baseline = [key for key in candidates if key[0] == base]
        rows.append({
            "task": task, "choice": dict(zip(("arm", "from"), best, strict=True)),
            "regret": lost[best],
            "baseline_moved": lost[min(of_baseline, key=lambda key: candidates[key])]
            if of_baseline else None,
            "baseline_default": _default(board) - min(tuned.values()),
            "random": float(np.mean(list(lost.values())))})
    return rows


def _mean_score(arm: str, source: str, tasks: list[str], boards: dict[str, dict], moved: Moved
                ) -> float | None:
    """Return the mean score of a candidate over tasks: as tuned on its own, moved to the others.
    None if it was not moved to one of these."""
    scores = []
    for task in tasks:
        if task == source:
            scores.append(_tuned(boards[task])[arm])
        elif arm in moved.get((source, task), {"arms": {}})["arms"]:
            scores.append(_moved_score(boards[task], moved[source, task], arm))
        else:
            return None
    return float(np.mean(scores))


def _tuned(board: dict) -> dict[str, float]:
    """Return the score of every ranked arm, as tuned on the board's task."""
    return {name: _score(board, float(np.mean(row["values"])))
            for name, row in board["results"]["arms"].items() if "rank" in row}


def _moved_score(board: dict, transfer: dict, arm: str) -> float:
    return _score(board, value(board["terms"], transfer["arms"][arm]["moved"]))


def _default(board: dict) -> float:
    """Return the score of the baseline's trial 0, its defaults, averaged over studies."""
    terms = board["terms"]
    trials = [study["trials"][0] for study in board["arms"][terms["baseline"]]["studies"]]
    race = terms["regime"] == "race"
    return _score(board, float(np.mean([
        math.log(trial["cost"] or terms["cap"]) if race else -trial["grade"]
        for trial in trials])))


def _score(board: dict, logs: float) -> float:
    """Return the score of a mean log cost, or of a mean log metric on an annealed board."""
    terms = board["terms"]
    values = {name: row["values"] for name, row in board["results"]["arms"].items()}
    difference = logs - float(np.mean(values[terms["baseline"]]))
    if terms["regime"] == "race":
        return difference
    if (ladder := Ladder.of(terms, values)) is None:
        raise ConfigError(f"the board of {terms['task']} has no ladder to convert a loss to a "
                          f"budget: search {terms['baseline']} on it")
    return -math.log(ladder.budget(difference))


def recommend(outputs: Path) -> Path:
    """Write and print the recommendations for all tasks that have a board and transfers to it.
    Return the path of the JSON. Raises ConfigError if there is no such task."""
    boards = {path.stem: require_board(path)
              for path in sorted(board_path(outputs, "any").parent.glob("*.json"))}
    moved = {}
    for path in sorted((outputs / "paper" / "follow_up").glob("*_transfer_from_*.json")):
        target, source = path.stem.split("_transfer_from_")
        moved[source, target] = require_board(path)
    rows = regrets(boards, moved)
    if not rows:
        raise ConfigError("--recommend needs the boards of two tasks and --transfer between them; "
                          f"there are: {', '.join(boards) or 'none'}")
    path = outputs / "paper" / "recommend.json"
    write_json(path, {"rows": rows}, depth=2)
    write_recommendations(path)
    print(path.with_suffix(".md").read_text(encoding="utf-8"), end="")
    return path


def write_recommendations(path: Path) -> None:
    """Write the page beside the JSON, if there is one."""
    content = read_board(path)
    if content is None:
        return
    heads = {"regret": "cost", "baseline_moved": "AdamW, moved", "baseline_default":
             "AdamW's defaults", "random": "random candidate"}
    lines: Lines = [("held-out task", "recommended", *heads.values())]
    for row in content["rows"]:
        lines.append((row["task"], "{arm}, tuned on {from}".format(**row["choice"]), *(
            "" if row[key] is None else math.exp(row[key]) for key in heads)))
    path.with_suffix(".md").write_text(page(
        "# Which optimizer, with which setting, for a new task?",
        "For each task, the arm and setting that the boards of the *other* tasks recommend, run on "
        "this one. Costs are gradient evaluations relative to the best arm tuned on the held-out "
        "task (on annealed tasks by AdamW's budget), beside three naive rules. One value each, no "
        "interval: the tasks are few.", table(lines)), encoding="utf-8")
