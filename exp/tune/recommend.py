"""Recommend an arm for a held-out task from the boards of other tasks, and compute its regret."""

import math
from pathlib import Path

import numpy as np

from exp.harness.errors import ConfigError
from exp.report.jsonfile import require_json
from exp.report.tables import table
from exp.tune.board import board_path, require_board
from exp.tune.probe import value


def regrets(boards: dict[str, dict], moved: dict[tuple[str, str], dict]) -> list[dict]:
    """Return one row per task: the arm that the other tasks' boards recommend, and its regret.

    boards: task -> board. moved: (from, to) -> content of that transfer's file. `choice` is the arm
    with the least mean log ratio to the baseline on the other tasks. `regret` is the log cost of
    its moved winner, averaged over the tasks it is moved from, minus that of the best arm tuned on
    the task. `baseline` and `random` are the regrets of the baseline and of a random arm.
    """
    rows = []
    for task, board in boards.items():
        others = [other for other in boards if (other, task) in moved]
        names = [name for name, row in board["results"]["arms"].items() if "rank" in row and all(
            name in boards[other]["arms"] and name in moved[other, task]["arms"]
            for other in others)]
        if not others or not names:
            continue
        tuned = min(np.mean(row["values"]) for row in board["results"]["arms"].values()
                    if "rank" in row)
        lost = {name: float(np.mean(
            [value(board["terms"], moved[other, task]["arms"][name]["moved"]) for other in others])
            - tuned) for name in names}
        choice = min(names, key=lambda name: np.mean(
            [math.log(boards[other]["results"]["arms"][name].get("ratio", 1)) for other in others]))
        rows.append({"task": task, "choice": choice, "regret": lost[choice],
                     "baseline": lost.get(board["terms"]["baseline"], math.nan),
                     "random": float(np.mean(list(lost.values())))})
    return rows


def recommend(outputs: Path) -> None:
    """Print the regrets of all tasks that have a board and transfers to it. Raises ConfigError if
    there is no such task."""
    boards = {path.stem: require_board(path)
              for path in board_path(outputs, "any").parent.glob("*.json")}
    moved = {}
    for path in (outputs / "paper" / "follow_up").glob("*_transfer_from_*.json"):
        target, source = path.stem.split("_transfer_from_")
        moved[source, target] = require_json(path)
    rows = regrets(boards, moved)
    if not rows:
        raise ConfigError("--recommend needs the boards of two tasks and --transfer between them")
    print(table([("held-out task", "arm", "cost", "AdamW, transferred", "random arm"), *(
        (row["task"], row["choice"], *(math.exp(row[key]) for key in (
            "regret", "baseline", "random"))) for row in rows)]))
    print("Costs relative to the best arm tuned on the held-out task; one value each, no interval.")
