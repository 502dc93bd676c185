"""The long table: one row per measured number, kept as JSON.

    rows = Rows([Row("eval_loss", 1, 5.2, task="cifar", optimizer="adamw", settings={"lr": 0.01})])
    rows.where(task="cifar").tree("optimizer", "lr")     # {"adamw": {0.01: [5.2]}}
    write_rows(path, rows, provenance); rows, provenance = read_rows(path)

The file is {"schema": 1, "provenance": {...}, "columns": [...], "rows": [[...], ...]}. Its
provenance (device, torch, commit, seeds) applies to all rows.
"""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

from exp.report.jsonfile import read_json, write_json

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One measured number.

    axis: the measured quantity, e.g. "eval_loss". value: None if not finite (the run diverged).
    settings: other varied settings, name -> text or number.
    """

    axis: str
    seed: int
    value: float | None
    task: str = ""
    optimizer: str = ""
    settings: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "value", None)  # JSON has no infinity

    def __getitem__(self, column: str) -> Any:
        """Return the value of a column or setting; None for a setting that the row lacks."""
        return getattr(self, column) if column in COLUMNS else self.settings.get(column)


COLUMNS = tuple(column.name for column in fields(Row))


class Rows(list[Row]):
    """A list of rows with filters and grouping, all of which keep the order of rows."""

    def where(self, **values: object) -> "Rows":
        """Return the rows with these values of columns or settings."""
        return Rows(row for row in self if all(row[key] == wanted
                                               for key, wanted in values.items()))

    def levels(self, column: str) -> list:
        """Return the distinct values of a column or setting, in order of appearance."""
        return list(dict.fromkeys(row[column] for row in self))

    def tree(self, *columns: str) -> dict:
        """Group the values by columns or settings, the first one outermost: {level: {level: [value
        per seed]}}. Rows that lack one of the settings are left out."""
        result: dict = {}
        for row in self:
            levels = [row[column] for column in columns]
            if None in levels:
                continue
            branch = result
            for level in levels[:-1]:
                branch = branch.setdefault(level, {})
            branch.setdefault(levels[-1], []).append(row.value)
        return result

    def values(self, **values: object) -> list:
        """Return one value per seed: those of the rows with these columns and settings."""
        return [row.value for row in self.where(**values)]

    def pivot(self, lines: tuple[str, ...], columns: str, head: tuple[str, ...] = ()
              ) -> list[tuple]:
        """Return lines for `exp.report.tables.table`: one line per combination of `lines`, one cell
        per level of `columns`. head: titles of the first cells (default: the names in `lines`)."""
        levels = self.levels(columns)
        cells: dict[tuple, dict] = {}
        for row in self:
            line = cells.setdefault(tuple(map(str, (row[key] for key in lines))), {})
            line.setdefault(row[columns], []).append(row.value)
        return [(*(head or lines), *map(str, levels)),
                *((*line, *(by_level.get(level) for level in levels))
                  for line, by_level in cells.items())]


def rows_of(tree: dict | list, columns: tuple[str, ...], seeds: Iterable[int], **shared: object
            ) -> Rows:
    """Return nested objects with one value per seed as rows, the inverse of `Rows.tree`. shared:
    columns and settings of all rows."""
    rows = Rows()

    def visit(branch: dict | list, levels: dict) -> None:
        if isinstance(branch, list):
            known = {key: value for key, value in levels.items() if key in COLUMNS}
            settings = {key: value for key, value in levels.items() if key not in COLUMNS}
            rows.extend(Row(seed=seed, value=value, settings=settings, **known)
                        for seed, value in zip(seeds, branch, strict=True))
            return
        for level, inner in branch.items():
            visit(inner, {**levels, columns[len(levels) - len(shared)]: level})

    visit(tree, shared)
    return rows


def write_rows(path: Path, rows: Iterable[Row], provenance: dict) -> None:
    """Write rows as JSON, one per line, with their provenance."""
    write_json(path, {"schema": SCHEMA, "provenance": provenance, "columns": list(COLUMNS),
                      "rows": [list(astuple(row)) for row in rows]}, depth=2)


def read_rows(path: Path) -> tuple[Rows, dict]:
    """Return (rows, provenance) of a file. Raises ValueError if it is missing, damaged, or of
    another schema."""
    content = read_json(path)
    if content is None or content.get("schema") != SCHEMA:
        raise ValueError(f"{path} is missing or not a file of rows with schema {SCHEMA}")
    return Rows(Row(**dict(zip(content["columns"], row, strict=True)))
                for row in content["rows"]), content["provenance"]
