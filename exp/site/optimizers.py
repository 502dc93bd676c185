"""docs/optimizers: one page per optimizer, from its file and the boards that list it."""

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from exp.report.tables import markdown, number, page
from exp.tune.page import ratio
from optimizer import GIVEN_BY_CODE, available_optimizers, is_wrapper, optimizer_class

FOLDER = Path("docs/optimizers")
TUNER = ("`python -m exp.tune` searches the same four axes for every optimizer "
         "([tuning](../running.md#tuning)). Of these ranges it takes at most one: the first of an "
         "argument that only this optimizer has.")
MADE = "Made by `python -m exp.site` from the optimizer's file and the committed boards."


def pages(boards: Mapping[str, dict]) -> dict[str, str]:
    """Return {file name: text}: a page for every file of optimizer/, and README.md with a list.

    boards: name -> a board of schema ars-arena/1.
    """
    classes = {name: optimizer_class(name) for name in available_optimizers()}
    ours = {name: cls for name, cls in classes.items() if cls.__module__.startswith("optimizer.")}
    texts = {f"{name}.md": optimizer_page(name, cls, boards) for name, cls in ours.items()}
    lines = [("optimizer", "description", "gradient evaluations per step"), *(
        (f"[{name}]({name}.md)", _first_line(module := _module(cls)), _cost(module)[0])
        for name, cls in ours.items())]
    return texts | {"README.md": page(
        "# Optimizers", "Every optimizer and wrapper of this project, with its cost per step. The "
        "page of each has its arguments, cost, search space and results.", markdown(lines), MADE)}


def optimizer_page(name: str, cls: type, boards: Mapping[str, dict]) -> str:
    """The page of one optimizer: description, arguments, cost, search space, rows on boards."""
    module = _module(cls)
    evaluations, state = _cost(module)
    tested = getattr(module, "TESTED_AGAINST", "the invariants of all optimizers")
    place = f"`[optimizer.{name}]`" if is_wrapper(cls) else f'`[optimizer] name = "{name}"`'
    space = [("argument", "suggested range"), *((f"`{key}`", _searched(values)) for key, values
                                         in getattr(module, "SEARCH_SPACE", {}).items())]
    return page(
        f"# {cls.__name__}", f"{_first_line(module)}.",
        f"In a config: {place}. In your own training loop: `from ars_optim import {cls.__name__}` "
        f"([how](../using.md)). Source: [optimizer/{name}.py](../../optimizer/{name}.py).",
        f"```text\n{inspect.getdoc(cls)}\n```", "## Arguments", markdown(_arguments(cls)),
        "## Cost", f"Gradient evaluations per step: {evaluations}. State tensors per parameter: "
        f"{state}. Tested against: {tested}.",
        "## Search space", TUNER, markdown(space) if len(space) > 1 else "None declared.",
        "## Boards", _rows(name, boards) or "Not on any committed board.", MADE)


def _module(cls: type) -> ModuleType:
    module = inspect.getmodule(cls)
    assert module is not None
    return module


def _first_line(module: ModuleType) -> str:
    paragraph = (module.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split()).rstrip(".").replace("|", "\\|")


def _cost(module: ModuleType) -> tuple[str, str]:
    cost = getattr(module, "COST", {})
    evaluations, tensors = (str(cost.get(key, "not stated"))
                            for key in ("gradient_evaluations", "state_tensors"))
    return evaluations, tensors


def _arguments(cls: type) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [("argument", "type", "default")]
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.name not in GIVEN_BY_CODE:
            kind = inspect.formatannotation(parameter.annotation)
            kind = re.sub(r"\b(typing|collections\.abc)\.", "", kind)
            default = "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
            lines.append((f"`{parameter.name}`", f"`{kind}`".replace("|", "\\|"), default))
    return lines


def _searched(values: Any) -> str:
    if isinstance(values, tuple):
        return f"{number(values[0])} to {number(values[1])}, {values[2]}"
    return "one of " + ", ".join(f"`{value}`" for value in values)


def _rows(name: str, boards: Mapping[str, dict]) -> str:
    lines = [("board", "arm", "cost or metric", "relative to the baseline, 95 %")]
    for board_name, board in boards.items():
        for arm, row in board["results"]["arms"].items():
            if name in _rules(board["arms"][arm]["optimizer"]):
                lines.append((board_name, arm, number(row["cost"]), ratio(board, arm)))
    return markdown(lines) if len(lines) > 1 else ""


def _rules(table: dict) -> Iterable[str]:
    return (table["name"], *(key for key, value in table.items() if isinstance(value, dict)))


def write(boards: Mapping[str, dict], folder: Path = FOLDER) -> None:
    """Write the pages, and remove those of optimizers that no longer exist."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = pages(boards)
    for path in folder.glob("*.md"):
        if path.name not in texts:
            path.unlink()
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
