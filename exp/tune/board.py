"""Boards: reading and updating outputs/paper/arena/<name>.json, and writing its page.

A board holds its terms, all studies of all arms, and the results computed from these alone.
"""

from collections.abc import Iterable
from pathlib import Path

from exp.harness.errors import ConfigError
from exp.harness.toml import to_toml
from exp.report.jsonfile import read_json, write_json
from exp.report.tables import older_code, page
from exp.tune.arms import Arm
from exp.tune.chain import Chain
from exp.tune.estimate import interim_results, results, study_values
from exp.tune.figures import draw_tuning
from exp.tune.page import render
from exp.tune.terms import IN_PROGRESS, SCHEMA, rung, settings_of


def board_path(outputs: Path, name: str) -> Path:
    """Return the path of a board's JSON; its page lies beside it."""
    return outputs / "paper" / "arena" / f"{name}.json"


def interim_path(path: Path) -> Path:
    """Return the path of a board in progress, one that lacks studies its terms announce. path: that
    of the finished board."""
    return path.parent / "in_progress" / path.name


def published(outputs: Path) -> list[Path]:
    """Return the paths of all boards, finished and in progress, and of all challenges."""
    return sorted((*board_path(outputs, "any").parent.rglob("*.json"),
                   *(outputs / "challenge").glob("*.json")))


def read_board(path: Path) -> dict | None:
    """Read a board; None if there is no file. Raises ConfigError for a damaged file."""
    try:
        return read_json(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def require_board(path: Path) -> dict:
    """Read a board. Raises ConfigError for a missing or damaged file."""
    board = read_board(path)
    if board is None:
        raise ConfigError(f"{path} does not exist: run the search first")
    return board


def require_terms(board: dict | None, terms: dict, replace: bool) -> dict:
    """Return the board if it has these terms (any version of the sampler), else an empty board.
    Raises ConfigError for a board on other terms, unless `replace`."""
    empty = {"schema": SCHEMA, "terms": terms, "arms": {}}
    if board is None:
        return empty
    changed = [f"{key} {board['terms'].get(key)} -> {value}" for key, value in terms.items()
               if board["terms"].get(key) != value and key != "sampler"]
    if changed and not replace:
        raise ConfigError(f"the board of {terms['task']} was made with other terms "
                          f"({', '.join(changed)}): use those, or discard it with --replace")
    return empty if changed else board


def published_study(board: dict, chain: Chain) -> dict | None:
    """Return the chain's study on the board if its arm and RECIPE numbers are the chain's, else
    None."""
    entry, plan = board["arms"].get(chain.arm.name), chain.plan
    if entry is None or any(entry[key] != plan[key] for key in chain.arm.record()):
        return None
    return next((study for study in entry["studies"] if study["number"] == chain.number
                 and study["code"] == chain.code), None)


def write_board(path: Path, board: dict, arms: Iterable[Arm], studies: dict[str, list[dict]]
                ) -> None:
    """Add arms with their studies, compute the results, write the JSON and the page."""
    for arm in arms:
        before = board["arms"].get(arm.name, {})
        if before.get("studies") != studies[arm.name]:
            board["arms"][arm.name] = entry_of(arm, studies[arm.name])
    board["results"] = results(board["terms"], board["arms"])
    save(path, board)


def write_interim(path: Path, terms: dict, arms: Iterable[Arm],
                  studies: dict[str, list[dict | None]]) -> None:
    """Write a board in progress: the first studies, as many as are complete for all arms."""
    count = whole_studies(studies)
    entries = {arm.name: entry_of(arm, [study for study in studies[arm.name][:count] if study])
               for arm in arms}
    save(path, {"schema": IN_PROGRESS, "terms": terms, "arms": entries,
                "results": interim_results(terms, entries, count)})


def whole_studies(studies: dict[str, list[dict | None]]) -> int:
    """Return the largest K such that the first K studies are complete for all arms."""
    return min([*of_arm, None].index(None) for of_arm in studies.values())


def entry_of(arm: Arm, studies: list[dict]) -> dict:
    """Return an arm with its studies in the form of a board's JSON."""
    return {**arm.record(), "ms_per_evaluation": _own_pace(studies), "studies": studies}


def write_configs(folder: Path, terms: dict, arms: Iterable[Arm], studies: dict[str, list[dict]]
                  ) -> None:
    """Write <task>_<arm>.toml for each arm: a config to train with the winner of its median study.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for arm in arms:
        values, _ = study_values(terms, studies[arm.name])
        median = sorted(range(len(values)), key=values.__getitem__)[(len(values) - 1) // 2]
        study = studies[arm.name][median]
        table = arm.settings(study["trials"][study["winner"]]["params"],
                             rung(terms, arm.name)["cap"])
        settings = settings_of(rung(terms, arm.name), arm, table, 42, rung(terms, arm.name)["cap"])
        steps = rung(terms, arm.name)["cap"] / arm.gradient_evaluations_per_step
        settings["experiment"] = {
            "task": terms["task"], "seed": 42, "epochs": int(steps // terms["evaluate_every"]),
            **{key: settings["experiment"][key] for key in ("stop_at", "hold")
               if terms["regime"] == "race"}}
        path = folder / f"{terms['task']}_{arm.name}.toml"
        path.write_text(
            f"# python -m exp.{terms['task']}.train --config config/tuned/{path.name}\n"
            f"# Written by exp.tune: the winner of study {study['number']}.\n{to_toml(settings)}",
            encoding="utf-8")


def save(path: Path, board: dict) -> None:
    """Write the JSON and the page of a board."""
    write_json(path, board, depth=4)
    write_page(path)


def write_page(path: Path) -> None:
    """Write a board's page and the figure of its tuning curves from its JSON."""
    board = require_board(path)
    path.with_suffix(".md").write_text(page(
        render(board).rstrip(), f"![Tuning curves]({path.stem}.png)",
        older_code(older_studies(board))), encoding="utf-8")
    draw_tuning(path.with_suffix(".png"), board)


def older_studies(board: dict) -> list[str]:
    """Return "arm, studies N, ..." for each arm with studies of other RECIPE numbers than today's.
    Arms with an optimizer or settings that this tree does not accept are skipped."""
    marks = []
    for name, entry in board["arms"].items():
        try:
            now = Chain(Arm.of(name, entry), 0, rung(board["terms"], name), Path()).code
        except ConfigError:
            continue
        if older := [study["number"] for study in entry["studies"] if study["code"] != now]:
            marks.append(f"{name}, studies {', '.join(map(str, older))}")
    return marks


def _own_pace(studies: list[dict]) -> float:
    """Return milliseconds per gradient evaluation from the wall time of the fresh runs."""
    runs = [run for study in studies for run in study["fresh"] if run["curve"]["evaluations"]]
    spent = sum(run["curve"]["evaluations"][-1] for run in runs)
    return 1e3 * sum(run["seconds"] for run in runs) / spent if spent else 0.0
