"""leaderboard.json, and what is made from it: pages, figures, tuned configs, the README's table."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch

from exp.harness.device import pick_device
from exp.harness.errors import ConfigError
from exp.harness.facts import ROOT, device_name
from exp.report.tables import between_marks
from exp.tune import pace, report, score
from exp.tune.page import render_html
from exp.tune.space import Goal

README, PAPER, BOARD = ROOT / "README.md", ROOT / "outputs" / "paper", "leaderboard.json"
AMOUNTS = {"budget": 10, "studies": 3, "fresh_seeds": 10}  # of a task that was never tuned


def agreed_terms(goal: Goal, asked: dict[str, int | None], arms: Sequence[str],
                 standing: dict | None, replace: bool = False) -> dict:
    """What must be equal for results to be comparable: the goal, and how much each arm is given.

    asked: `budget`, `studies` and `fresh_seeds`, None where nothing was said: then as `standing`
    has it, the task's entry in what was published before, if there is one. `point_seeds`, a study
    each, are those that stand there too: what is added is tried at the same points.
    Raises ConfigError if other terms would drop arms that stand there, unless they `replace` them.
    """
    usual = standing["terms"] if standing else AMOUNTS
    terms = {"task": goal.task, "metric": goal.metric, "mode": goal.mode, "target": goal.target,
             "cap": goal.cap, "set": list(goal.overrides),
             **{key: usual[key] if asked[key] is None else asked[key] for key in AMOUNTS}}
    seeds = usual.get("point_seeds", [])
    terms["point_seeds"] = [seeds[number - 1] if number <= len(seeds)
                            else zlib.crc32(f"{goal.task}/{number}".encode())
                            for number in range(1, terms["studies"] + 1)]
    if standing and not replace and terms != standing["terms"]:
        changed = [f"{key} {standing['terms'].get(key)} -> {value}" for key, value in terms.items()
                   if standing["terms"].get(key) != value]
        lost = [arm for arm in standing["arms"] if arm not in arms]
        if lost:
            raise ConfigError(
                f"the leaderboard of {goal.task} stands on other terms ({', '.join(changed)}) and "
                f"would lose {', '.join(lost)}: name these too, keep its terms, or --replace it")
    return terms


def facts_of(fresh: dict[str, list[dict]]) -> dict[str, str]:
    """Device, torch and commit of all these runs; "+" after one with uncommitted changes."""
    every = [run for runs in fresh.values() for run in runs]
    facts = {key: {str(run[key]) for run in every} for key in ("device", "torch")}
    facts["commit"] = {str(run["commit"])[:7] + "+" * bool(run["uncommitted_changes"])
                       for run in every}
    return {key: ("; " if key == "device" else ", ").join(sorted(found)) or "–"
            for key, found in facts.items()}


def write_leaderboard(goal: Goal, terms: dict, records: dict, fresh: dict, paper: Path) -> None:
    """Put the task into leaderboard.json, beside what other tasks and arms have there, write the
    pages from it, and config/tuned_<task>_<arm>.toml for every arm with a winner."""
    paper.mkdir(parents=True, exist_ok=True)
    path = paper / BOARD
    board = read_board(path)
    task = board["tasks"].setdefault(goal.task, {"terms": terms, "arms": {}})
    before = task["arms"]
    if task["terms"] != terms:
        task |= {"terms": terms, "arms": {}}  # other terms are another leaderboard, see above
    for arm, studies in records.items():
        text = score.shown_text(studies)
        entry = {"studies": studies, "fresh": fresh[arm], "config": ""}
        if text:
            entry["config"] = f"config/{score.config_name(goal, arm)}.toml"
            path_of(entry["config"], paper).write_text(text, encoding="utf-8")
        for study, old in zip(studies, before.get(arm, {}).get("studies", []), strict=False):
            if "pace" in old and old["text"] == study["text"]:
                study["pace"] = old["pace"]
        task["arms"][arm] = entry
    task |= facts_of({arm: entry["fresh"] for arm, entry in task["arms"].items()})
    path.write_text(board_text(board), encoding="utf-8")
    write_pages(paper)


def write_pace(task: str, paper: Path) -> None:
    """Time every winner of a task's leaderboard side by side, here and now; write the pages.

    Raises ConfigError where there is none, or where a config is no longer understood.
    """
    board = read_board(paper / BOARD)
    entry = board["tasks"].get(task, {"arms": {}})
    won = [study for arm in entry["arms"].values() for study in arm["studies"] if study["text"]]
    if not won:
        raise ConfigError(f"{paper / BOARD} has no winner of {task} yet: tune for it first")
    entry["pace"] = {"device": device_name(pick_device("auto")), "torch": torch.__version__,
                     "threads": torch.get_num_threads()}
    for study, found in zip(won, pace.measure(task, [s["text"] for s in won]), strict=True):
        study["pace"] = found
    (paper / BOARD).write_text(board_text(board), encoding="utf-8")
    write_pages(paper)


def path_of(config: str, paper: Path) -> Path:
    """Where a tuned config goes: among the project's own, or into another outputs folder."""
    path = (ROOT if paper.resolve() == PAPER else paper.parent) / config
    path.parent.mkdir(exist_ok=True)
    return path


def read_board(path: Path) -> dict:
    """leaderboard.json, or an empty one. Raises ConfigError for a damaged file."""
    return read_published(path) or {"tasks": {}}


def read_published(path: Path) -> dict | None:
    """A JSON file among the results, None if there is none. Raises ConfigError if damaged."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it or delete it") from error


def write_pages(paper: Path) -> None:
    """leaderboard.md, leaderboard.html, the figures and, where these are the project's own, the
    README's table, from leaderboard.json."""
    board = read_board(paper / BOARD)
    (paper / "leaderboard.md").write_text(report.render(board), encoding="utf-8")
    (paper / "leaderboard.html").write_text(render_html(board), encoding="utf-8")
    for name, task in board["tasks"].items():
        report.draw(paper / f"leaderboard_{name}.png", task)
    if paper.resolve() == PAPER:
        README.write_text(with_headline(README.read_text(encoding="utf-8"), board),
                          encoding="utf-8")


def with_headline(readme: str, board: dict) -> str:
    """The README with the leaderboard in short."""
    return between_marks(readme, "exp.tune", report.headline(board))


def board_text(board: dict) -> str:
    """leaderboard.json: one arm a line."""
    tasks = []
    for name, task in board["tasks"].items():
        arms = ",\n".join(f"{json.dumps(arm)}: {json.dumps(entry)}"
                          for arm, entry in task["arms"].items())
        rest = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}"
                          for key, value in task.items() if key != "arms")
        tasks.append(f'{json.dumps(name)}: {{\n{rest},\n"arms": {{\n{arms}\n}}}}')
    return '{"tasks": {\n' + ",\n".join(tasks) + "\n}}\n"
