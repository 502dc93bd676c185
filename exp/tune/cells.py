"""The cells of the ablation: `[ablation]` of arms.toml as arms, one for every combination.

A cell is one level of every factor, {"whitening": "yes", "energy": "none", ...}. Two cells that are
the same update are run once, as one arm.
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
    """The factors, each with its levels in order, the first one the level without the part; what
    every cell and each level set; what single cells are: known rules, the same as another."""

    settings: dict
    factors: dict[str, dict[str, dict]]
    special: tuple[dict, ...]

    def cells(self) -> list[Cell]:
        """Every combination of levels."""
        return [dict(zip(self.factors, levels, strict=True))
                for levels in product(*self.factors.values())]

    def run_as(self, cell: Cell) -> Cell:
        """The cell whose runs are this one's: itself, but where two are the same update."""
        for entry in self._about(cell):
            cell = {**cell, **entry.get("same_as", {})}
        return cell

    def arms(self) -> dict[str, Cell]:
        """Name of an arm -> its cell: those that are run."""
        return {arm_name(cell): cell for cell in self.cells() if self.run_as(cell) == cell}

    def arm_settings(self, cell: Cell) -> dict:
        """The `[optimizer]` table of a cell before anything is searched."""
        levels = [self.factors[factor][level] for factor, level in cell.items()]
        special = [entry["set"] for entry in self._about(cell) if "set" in entry]
        return {key: value for part in (self.settings, *levels, *special)
                for key, value in part.items()}

    def known_as(self, cell: Cell) -> str:
        """The rule that the cell is, "" where it has no name."""
        names = [entry["is"] for entry in self._about(cell) if "is" in entry]
        return names[-1] if names else ""

    def _about(self, cell: Cell) -> list[dict]:
        return [entry for entry in self.special if entry["cell"].items() <= cell.items()]


def read_ablation() -> Ablation:
    """The `[ablation]` of arms.toml."""
    content = read_toml(ARMS)[PREFIX]
    return Ablation(content["settings"], content["factors"], tuple(content["special"]))


def arm_name(cell: Cell) -> str:
    """What the cell's arm is called: ablation-yes-no-none-sync."""
    return "-".join([PREFIX, *cell.values()])
