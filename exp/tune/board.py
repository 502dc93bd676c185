"""leaderboard.json, and what is made from it: pages, figures, tuned configs, the README's table."""

import json
from pathlib import Path

from exp.harness.errors import ConfigError
from exp.harness.facts import ROOT
from exp.report.tables import between_marks
from exp.tune import report, score
from exp.tune.page import render_html
from exp.tune.space import Goal, task_entries

README, PAPER = ROOT / "README.md", ROOT / "outputs" / "paper"


def terms_of(goal: Goal, budget: int) -> dict:
    """What must be equal for results to be comparable."""
    return {"task": goal.task, "metric": goal.metric, "mode": goal.mode, "target": goal.target,
            "cap": goal.cap, "budget": budget, "set": list(goal.overrides)}


def facts_of(fresh: dict[str, list[dict]]) -> dict[str, str]:
    """Device, torch and commit of all these runs."""
    every = [run for runs in fresh.values() for run in runs]
    return {key: ", ".join(sorted({str(run[key])[:40] for run in every})) or "–"
            for key in ("device", "torch", "commit")}


def write_leaderboard(goal: Goal, records: dict, fresh: dict, budget: int, paper: Path) -> None:
    """Put the task into leaderboard.json, beside what other tasks and arms have there, write the
    pages from it, and config/tuned_<task>_<arm>.toml for every arm with a winner."""
    paper.mkdir(parents=True, exist_ok=True)
    path = paper / "leaderboard.json"
    board = read_board(path)
    terms = terms_of(goal, budget)
    task = board["tasks"].setdefault(goal.task, {"terms": terms, "arms": {}})
    if task["terms"] != terms:
        task |= {"terms": terms, "arms": {}}  # other terms are another leaderboard
    for arm, studies in records.items():
        number = score.representative(studies)
        text = config = ""
        if number is not None:
            name = f"tuned_{goal.task}_{arm}"
            text = score.winner_config(goal, arm, score.winner(studies[number - 1]), name)
            config = f"config/{name}.toml"
            (config_folder(paper) / f"{name}.toml").write_text(text, encoding="utf-8")
        task["arms"][arm] = {"studies": studies, "fresh": fresh[arm], "config": config,
                             "text": text}
    task |= facts_of({arm: entry["fresh"] for arm, entry in task["arms"].items()})
    in_order = {name: board["tasks"][name] for name in task_entries() if name in board["tasks"]}
    board["tasks"] = in_order | board["tasks"]  # nor is one lost that is no longer tuned for
    path.write_text(board_text(board), encoding="utf-8")
    write_pages(paper)


def config_folder(paper: Path) -> Path:
    """Where tuned configs go: config/ beside the outputs folder."""
    folder = paper.parent.parent / "config"
    folder.mkdir(exist_ok=True)
    return folder


def read_board(path: Path) -> dict:
    """leaderboard.json, or an empty one. Raises ConfigError for a damaged file."""
    if not path.exists():
        return {"tasks": {}}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it or delete it") from error


def write_pages(paper: Path) -> None:
    """leaderboard.md, leaderboard.html, the figures and, where these are the project's own, the
    README's table, from leaderboard.json."""
    board = read_board(paper / "leaderboard.json")
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
