"""Tables of papers, their rows, and the jobs that they need.

A row is run in every cell of its table: at a scale (full: the paper's; mini: two CPU cores), under
a protocol (published: with the flaws of the original; fixed: without) and at one level of each
factor of the table's grid, where it has one. All of them are overrides on the row's config.
"""

import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path

from exp.harness.facts import ROOT
from exp.harness.task import Metric, task_named
from exp.harness.toml import overrides_of, read_toml
from exp.jobs.queue import Job
from exp.reproduce.options import PROTOCOLS, SCALES
from optimizer import optimizer_class
from optimizer.parts.matrix import MatrixOptimizer


@dataclass(frozen=True)
class Cell:
    """A scale, a protocol, and one level of each factor of a grid."""

    scale: str
    protocol: str
    levels: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Scale, protocol and levels, for which a row may have its own overrides."""
        return (self.scale, self.protocol, *self.levels)


@dataclass(frozen=True)
class Row:
    """One line of a table: its label, its config, and its own overrides by the name of a scale,
    protocol or level."""

    label: str
    config: str
    own: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The config file."""
        return ROOT / "config" / f"{self.config}.toml"


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Rows are compared by the task's primary metric, or under the published protocol by
    published_metric if there is one. With a milestone they are compared by the time to it: to one
    of the task's, or with `threshold` to the first epoch whose metric reaches that value.
    baseline: the row with which others are paired.
    scales, protocols: name -> overrides, a scale's applied after the task's own of that name; a
    table without a mini scale runs in full on a CPU. seeds: scale -> number of seeds. grid: factor
    -> level -> overrides; needs a milestone or a metric of which less is better.
    note: printed on the table's page. other_data: if the data set here is another one, why
    published numbers are not comparable; orders of rows still are.
    """

    name: str
    title: str
    task: str
    baseline: str
    rows: tuple[Row, ...]
    scales: dict[str, tuple[str, ...]]
    protocols: dict[str, tuple[str, ...]]
    seeds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SCALES, 3))
    grid: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    fixed_for_matrix_rules: tuple[str, ...] = ()
    milestone: str = ""
    threshold: float | None = None
    published_metric: str = ""
    note: str = ""
    other_data: str = ""

    def scale(self, asked: str) -> str:
        """The scale to run at if `asked` is asked for: "full" if the table does not have it."""
        return asked if asked in self.scales else "full"

    def metric(self, protocol: str) -> Metric:
        """The metric by which rows are compared under `protocol`."""
        task = task_named(self.task)
        if protocol == "published" and self.published_metric:
            return task.metric(self.published_metric)
        return task.primary

    def cells(self) -> list[Cell]:
        """All cells in which a row of the table can be run."""
        return [Cell(scale, protocol, levels) for scale in SCALES if scale in self.scales
                for protocol in PROTOCOLS if protocol in self.protocols
                for levels in itertools.product(*self.grid.values())]

    def cells_to_run(self, scale: str, protocol: str) -> list[Cell]:
        """The cells of one scale and protocol in the order in which they are run. Those of a grid
        are shuffled, with a fixed seed, so that an unfinished grid is a random sample of it."""
        cells = [cell for cell in self.cells() if (cell.scale, cell.protocol) == (scale, protocol)]
        random.Random(0).shuffle(cells)
        return cells

    def overrides(self, row: Row, cell: Cell) -> tuple[str, ...]:
        """The `--set` options that turn the row's config into this cell."""
        of_task = overrides_of(task_named(self.task).scales.get(cell.scale, {}))
        chosen = of_task + self.scales[cell.scale] + self.protocols[cell.protocol]
        for factor, level in zip(self.grid.values(), cell.levels, strict=True):
            chosen += factor[level]
        if cell.protocol == "fixed":
            cls = optimizer_class(read_toml(row.path)["optimizer"]["name"])
            if issubclass(cls, MatrixOptimizer):
                chosen += self.fixed_for_matrix_rules
        return chosen + tuple(o for name in cell.names for o in row.own.get(name, ()))

    def job(self, row: Row, seed: int, cell: Cell, outputs: Path) -> Job:
        """The training run of one row and seed; its folder is outputs/<config>[-<cell>]/seed<n>."""
        marks = [name for name in cell.names if name not in ("full", "published")]
        folder = outputs / "-".join([row.config, *marks]) / f"seed{seed}"
        return Job(self.task, row.path.relative_to(ROOT), seed, folder, self.overrides(row, cell))
