"""Whether a kept run still counts: compare its essential settings and its modules' RECIPE numbers.

Other differences of code (commit, hashes of sources) are shown on pages and never make a run
count as missing. Reading a record imports nothing that it names.
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
    """What determines a run's result: its essential settings, and the RECIPE of each used module.

    settings: empty if today's code does not accept those of the record.
    recipes: module -> RECIPE. A missing module counts as 1, so that runs older than these numbers
    still count. None if run.json is missing or damaged.
    """

    settings: dict[str, dict]
    recipes: Mapping[str, int] | None

    def has_settings_of(self, wanted: "Identity") -> bool:
        """Whether the settings are equal, including the order of wrappers."""
        return self.settings == wanted.settings and (
            wrappers(self.settings["optimizer"]) == wrappers(wanted.settings["optimizer"]))

    def counts_as(self, wanted: "Identity") -> bool:
        """Whether a kept run with this identity counts as the wanted run."""
        kept, now = self.recipes, wanted.recipes
        return (self.has_settings_of(wanted) and kept is not None and now is not None
                and all(kept.get(name, 1) == number for name, number in now.items()))


def identity(settings: dict[str, dict], task: Task) -> Identity:
    """Return the identity of a run of today's code with these complete settings."""
    return Identity(essential(settings), recipes(settings, task))


def kept_identity(settings: dict, recipes: Mapping[str, int] | None, task: Task) -> Identity:
    """Return the identity of a kept run from its recorded settings and RECIPE numbers."""
    try:
        return Identity(essential(complete_recorded(settings, task)), recipes)
    except ConfigError:
        return Identity({}, recipes)


def folder_identity(folder: Path, task: Task) -> Identity:
    """Return the identity of the run in a folder; its settings are empty if there is no run."""
    try:
        settings = read_toml(folder / "config.toml")
    except (OSError, ValueError):
        return Identity({}, None)
    return kept_identity(settings, kept_recipes(folder / "run.json"), task)


def essential(settings: dict[str, dict]) -> dict[str, dict]:
    """Return the settings without those that do not change a result, see IRRELEVANT."""
    experiment = {k: v for k, v in settings["experiment"].items() if k not in IRRELEVANT}
    return {**settings, "experiment": experiment}


def kept_recipes(path: Path) -> dict[str, int] | None:
    """Return the RECIPE numbers of a run.json; 0 for a module whose number differs between the
    parts of a resumed run. None if the file is missing or damaged."""
    if not (facts := read_object(path)):
        return None
    parts = [part.get("recipes") or {} for part in (facts, *(facts.get("resumed_from") or []))]
    names = sorted({name for part in parts for name in part})
    numbers = {name: {part.get(name, 1) for part in parts} for name in names}
    return {name: min(values) if len(values) == 1 else 0 for name, values in numbers.items()}
