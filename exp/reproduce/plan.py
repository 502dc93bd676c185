"""What to run for a table of the paper: tables.toml read into tables, rows and jobs.

A table is run at a scale (full: the paper's; mini: two CPU cores) and under a protocol (published:
with the flaws of the original; fixed: without), each a list of overrides on the row's config.
"""

from dataclasses import dataclass, field
from pathlib import Path

from exp.harness.errors import ConfigError
from exp.harness.facts import ROOT
from exp.harness.toml import read_toml
from exp.jobs.queue import Job
from optimizer import optimizer_class
from optimizer.parts.matrix import MatrixOptimizer

TABLES = Path(__file__).parent / "tables.toml"
SCALES = ("full", "mini")
PROTOCOLS = ("published", "fixed")


@dataclass(frozen=True)
class Row:
    """One line of a table: a label, the config behind it, and its own overrides by scale and
    protocol, where it has some."""

    label: str
    config: str
    own: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The config file."""
        return ROOT / "config" / f"{self.config}.toml"


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    metric, mode: what rows are compared by, and whether "max" or "min" is better; milestone: the
    threshold whose time is compared instead, or "". baseline: the row that others are paired with.
    seeds: scale -> how many. scales, protocols: name -> overrides; a table without a mini scale
    runs in full on a CPU. test_metric: what the fixed protocol reports, chosen on `metric`.
    """

    name: str
    title: str
    task: str
    metric: str
    mode: str
    baseline: str
    rows: tuple[Row, ...]
    seeds: dict[str, int]
    scales: dict[str, tuple[str, ...]]
    protocols: dict[str, tuple[str, ...]]
    fixed_for_matrix_rules: tuple[str, ...] = ()
    milestone: str = ""
    published_metric: str = ""

    def scale(self, asked: str) -> str:
        """The scale to run at when `asked` is asked for."""
        return asked if asked in self.scales else "full"

    def metric_of(self, protocol: str) -> str:
        """The metric that `protocol` counts in."""
        return self.published_metric if protocol == "published" and self.published_metric \
            else self.metric

    def overrides(self, row: Row, scale: str, protocol: str) -> tuple[str, ...]:
        """The `--set` options that turn the row's config into this scale and protocol."""
        chosen = self.scales[scale] + self.protocols[protocol]
        if protocol == "fixed":
            cls = optimizer_class(read_toml(row.path)["optimizer"]["name"])
            if issubclass(cls, MatrixOptimizer):
                chosen += self.fixed_for_matrix_rules
        return chosen + row.own.get(scale, ()) + row.own.get(protocol, ())

    def job(self, row: Row, seed: int, scale: str, protocol: str, outputs: Path) -> Job:
        """The training run of one row and seed; its folder is outputs/<config>[-mini][-fixed]/."""
        marks = [mark for mark in (scale, protocol) if mark not in ("full", "published")]
        folder = outputs / "-".join([row.config, *marks]) / f"seed{seed}"
        return Job(self.task, row.path.relative_to(ROOT), seed, folder,
                   self.overrides(row, scale, protocol))


def read_tables(names: list[str] | None = None) -> list[Table]:
    """The tables of tables.toml, or those named. Raises ConfigError for an unknown name."""
    tables = {table["name"]: _table(table) for table in read_toml(TABLES)["table"]}
    unknown = [name for name in names or [] if name not in tables]
    if unknown:
        raise ConfigError(f"no table {unknown[0]!r}; there are: {', '.join(tables)}")
    return [tables[name] for name in names or tables]


def _table(entry: dict) -> Table:
    rows = tuple(Row(row.pop("label"), row.pop("config"), {k: tuple(v) for k, v in row.items()})
                 for row in entry.pop("row"))
    lists = {key: {name: tuple(overrides) for name, overrides in entry.pop(key).items()}
             for key in ("scales", "protocols")}
    matrix = tuple(entry.pop("fixed_for_matrix_rules", ()))
    return Table(rows=rows, fixed_for_matrix_rules=matrix, **lists, **entry)
