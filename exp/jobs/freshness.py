"""Whether a kept run still counts: its essential settings, and the RECIPE numbers of its modules.

Other differences of code (commit, hashes of sources) are shown on pages and never make a run
count as missing. Records are only compared: nothing that they name is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exp.harness.config import complete_recorded, wrappers
from exp.harness.errors import ConfigError
from exp.harness.folder import read_object
from exp.harness.recipes import recipes
from exp.harness.task import Task
from exp.harness.toml import read_toml

# [experiment] keys that do not change a result.
IRRELEVANT = ("seed", "device", "checkpoints", "tensorboard", "logger", "diagnostics",
              "diagnostics_every")


@dataclass(frozen=True)
class Identity:
    """What a run computes: its essential settings, and the RECIPE of every module it uses.

    settings: empty for those of a record that are not understood (any more).
    recipes: a module that is missing counts as 1, so that runs from before such numbers count;
    None where a damaged run.json no longer tells.
    """

    settings: dict[str, dict]
    recipes: Mapping[str, int] | None

    def has_settings_of(self, wanted: "Identity") -> bool:
        """Whether the settings are equal, the order of wrappers included."""
        return self.settings == wanted.settings and (
            wrappers(self.settings["optimizer"]) == wrappers(wanted.settings["optimizer"]))

    def counts_as(self, wanted: "Identity") -> bool:
        """Whether a kept run with this identity is the one that is wanted now."""
        kept, now = self.recipes, wanted.recipes
        return (self.has_settings_of(wanted) and kept is not None and now is not None
                and all(kept.get(name, 1) == number for name, number in now.items()))


def identity(settings: dict[str, dict], task: Task) -> Identity:
    """The identity of a run of today's code with complete settings."""
    return Identity(essential(settings), recipes(settings, task))


def kept_identity(settings: dict, recipes: Mapping[str, int] | None, task: Task) -> Identity:
    """The identity of a kept run, from its settings and RECIPE numbers as they were recorded."""
    try:
        return Identity(essential(complete_recorded(settings, task)), recipes)
    except ConfigError:
        return Identity({}, recipes)


def folder_identity(folder: Path, task: Task) -> Identity:
    """The identity of the run in a folder; with empty settings if there is none."""
    try:
        settings = read_toml(folder / "config.toml")
    except (OSError, ValueError):
        return Identity({}, None)
    return kept_identity(settings, kept_recipes(folder / "run.json"), task)


def essential(settings: dict[str, dict]) -> dict[str, dict]:
    """Settings without those that do not change a result: seed, device, tensorboard."""
    experiment = {k: v for k, v in settings["experiment"].items() if k not in IRRELEVANT}
    return {**settings, "experiment": experiment}


def kept_recipes(path: Path) -> dict[str, int] | None:
    """The RECIPE numbers of a run.json, 0 where the parts of a resumed run differ; None if it is
    missing or damaged."""
    if not (facts := read_object(path)):
        return None
    parts = [part.get("recipes") or {} for part in (facts, *(facts.get("resumed_from") or []))]
    names = sorted({name for part in parts for name in part})
    numbers = {name: {part.get(name, 1) for part in parts} for name in names}
    return {name: min(values) if len(values) == 1 else 0 for name, values in numbers.items()}
