"""RECIPE numbers: the version of each module's results.

A module whose results change declares `RECIPE = 2` at its top level, then 3, and so on; without a
declaration the number is 1. A run records the numbers of the modules that computed it, and is valid
while they stay the same (exp/jobs/freshness.py). tests/test_golden.py fails if results change and
the number does not.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from exp.harness.config import wrappers
from exp.harness.task import Task
from model import model_class
from optimizer import optimizer_class

ROOT = Path(__file__).parents[2]
SOURCES = ("optimizer", "model", "data", "exp")  # the packages of this project
SHARED = ("exp.harness", "data.batches")  # modules that every run uses


def recipes(settings: dict[str, dict], task: Task) -> dict[str, int]:
    """Module -> RECIPE of every module of this project that computes a run with these settings."""
    names = {*SHARED, f"exp.{task.name}.train", task.data.__module__,
             model_class(settings["model"]["name"]).__module__,
             *optimizer_modules(settings["optimizer"])}
    return {name: recipe(name) for name in sorted(names) if name.split(".")[0] in SOURCES}


def optimizer_modules(table: dict) -> set[str]:
    """Modules of the optimizer and the wrappers of an `[optimizer]` table, and optimizer.parts if
    they use it; an optimizer of torch.optim or a library alone does not."""
    modules = {optimizer_class(name).__module__ for name in (table["name"], *wrappers(table))}
    shared = "routing" in table or any(name.startswith("optimizer.") for name in modules)
    return modules | ({"optimizer.parts"} if shared else set())


def changes(kept: Mapping[str, int], now: Mapping[str, int] | None = None) -> str:
    """List modules whose RECIPE changed since results were made: "optimizer.lars 1 -> 2", or "".

    kept: module -> RECIPE then, 1 for a missing one. now: the modules that would compute the
    results today, by default the same.
    """
    now = {name: recipe(name) for name in kept} if now is None else now
    return ", ".join(f"{name} {kept.get(name, 1)} -> {number}" for name, number in now.items()
                     if kept.get(name, 1) != number)


def recipe(module: str) -> int:
    """Read the RECIPE that a module's source declares, without importing it; 1 if it declares none,
    0 if there is no such module."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.exists():
        return 0
    declared = re.search(r"^RECIPE = (\d+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return int(declared[1]) if declared else 1
