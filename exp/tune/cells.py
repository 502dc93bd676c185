"""The cells of the ablation: one arm per combination of levels in `[ablation]` of arms.toml.

A cell assigns a level to every factor, {"whitening": "yes", "energy": "none", ...}. Cells with the
same update are run once, as one arm.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from exp.harness.toml import read_toml

ARMS = Path(__file__).parent / "arms.toml"
PREFIX = "ablation"
ADAMW_CELL = "ablation-yes-no-none-none"  # the cell that is AdamW: the baseline

Cell = dict[str, str]


@dataclass(frozen=True)
class Ablation:
    """settings: those of every cell. factors: factor -> level -> settings; the first level is the
    one without the part. special: properties of single cells: known rules, equal cells."""

    settings: dict
    factors: dict[str, dict[str, dict]]
    special: tuple[dict, ...]

    def cells(self) -> list[Cell]:
        """Return every combination of levels."""
        return [dict(zip(self.factors, levels, strict=True))
                for levels in product(*self.factors.values())]

    def run_as(self, cell: Cell) -> Cell:
        """Return the cell whose runs this cell uses: itself, or another one with the same update.
        """
        for entry in self._about(cell):
            cell = {**cell, **entry.get("same_as", {})}
        return cell

    def arms(self) -> dict[str, Cell]:
        """Return name of the arm -> cell, for the cells that are run."""
        return {arm_name(cell): cell for cell in self.cells() if self.run_as(cell) == cell}

    def arm_settings(self, cell: Cell) -> dict:
        """Return the `[optimizer]` table of a cell before the search."""
        levels = [self.factors[factor][level] for factor, level in cell.items()]
        special = [entry["set"] for entry in self._about(cell) if "set" in entry]
        return {key: value for part in (self.settings, *levels, *special)
                for key, value in part.items()}

    def known_as(self, cell: Cell) -> str:
        """Return the name of the known rule that the cell equals, "" if there is none."""
        names = [entry["is"] for entry in self._about(cell) if "is" in entry]
        return names[-1] if names else ""

    def _about(self, cell: Cell) -> list[dict]:
        return [entry for entry in self.special if entry["cell"].items() <= cell.items()]


def read_ablation() -> Ablation:
    """Read the `[ablation]` of arms.toml."""
    content = read_toml(ARMS)[PREFIX]
    return Ablation(content["settings"], content["factors"], tuple(content["special"]))


def arm_name(cell: Cell) -> str:
    """Return the name of the cell's arm, e.g. ablation-yes-no-none-sync."""
    return "-".join([PREFIX, *cell.values()])
