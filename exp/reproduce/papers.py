"""Papers, found by folder: exp/papers/<paper>/ holds paper.toml, tables.toml and, where it has
claims, claims.toml."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exp.harness.errors import ConfigError
from exp.harness.facts import ROOT
from exp.harness.toml import read_toml
from exp.reproduce.claims import Claim
from exp.reproduce.plan import Row, Table

PAPERS = ROOT / "exp" / "papers"


@dataclass(frozen=True)
class Paper:
    """Tables and claims of one paper. note: printed above its verdicts. overheads: the benchmark
    that decides its claims about time and memory, {bench, configs, note}. headings: of claims whose
    `table` is none of `tables`."""

    name: str
    title: str
    note: str
    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    overheads: dict = field(default_factory=dict)
    headings: dict[str, str] = field(default_factory=dict)

    def claims_of(self, table: str) -> list[Claim]:
        """The claims that a table decides, in the paper's order."""
        return [claim for claim in self.claims if claim.table == table]


def read_papers(folder: Path = PAPERS) -> list[Paper]:
    """Read every paper, sorted by the name of its folder.

    Raises ConfigError for files with missing or unknown keys, and if two tables have the same name,
    which is also the name of their page.
    """
    papers = [_paper(path.parent) for path in sorted(folder.glob("*/paper.toml"))]
    names = [table.name for paper in papers for table in paper.tables]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two tables have the name {name!r}")
    return papers


def select_tables(papers: Sequence[Paper], names: Sequence[str] = ()) -> list[Table]:
    """Return the tables with these names, or all. Raises ConfigError for an unknown name."""
    tables = {table.name: table for paper in papers for table in paper.tables}
    unknown = [name for name in names if name not in tables]
    if unknown:
        raise ConfigError(f"unknown table {unknown[0]!r}; available: {', '.join(tables)}")
    return [tables[name] for name in names or tables]


def _paper(folder: Path) -> Paper:
    try:
        tables = read_toml(folder / "tables.toml")["table"]
        path = folder / "claims.toml"
        claims = read_toml(path)["claim"] if path.exists() else []
        return Paper(folder.name, tables=tuple(map(_table, tables)),
                     claims=tuple(map(_claim, claims)), **read_toml(folder / "paper.toml"))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}: {error}") from error


def _claim(entry: dict) -> Claim:
    return Claim(**{**entry, "where": tuple(entry.get("where", ()))})


def _table(entry: dict) -> Table:
    rows = tuple(Row(row.pop("label"), row.pop("config"), _tuples(row))
                 for row in entry.pop("row"))
    grid = {factor: _tuples(levels) for factor, levels in entry.pop("grid", {}).items()}
    lists: dict[str, Any] = {key: _tuples(entry.pop(key, {default: []}))
             for key, default in (("scales", "full"), ("protocols", "published"))}
    matrix = tuple(entry.pop("fixed_for_matrix_rules", ()))
    return Table(rows=rows, grid=grid, fixed_for_matrix_rules=matrix, **lists, **entry)


def _tuples(lists: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(items) for name, items in lists.items()}
