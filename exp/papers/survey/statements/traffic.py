"""Bytes sent and losses of two processes that average every gradient, or weights at intervals."""

from collections.abc import Iterable

import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from exp.harness.distributed import size
from exp.harness.schedule import Schedule
from exp.report.evidence import Evidence, sample
from exp.report.judgement import judge_all, judge_any, judge_below, judge_exact
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps, training
from exp.theory.processes import in_processes
from exp.theory.statement import Verdict
from exp.theory.training import built, steps
from optimizer.parts.base import set_mode

PROCESSES, STEPS, EVERY = 2, 64, 16
RATES = (2**-8, 2**-7)
SHARE, BOUND = 0.1, 1.0  # of the bytes; percent of the loss
BASE = "every gradient"
RULES = {BASE: {}, "LocalSGD": {"diloco": {"k": EVERY, "alpha": 1.0, "outer_momentum": 0.0}},
         "DiLoCo": {"diloco": {"k": EVERY, "alpha": 0.7, "outer_momentum": 0.9}}}
GRID = {"optimizer": RULES}


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Return rows of held-out losses over rates, and of the bytes of a run."""
    rows, used = in_processes(PROCESSES, runs, optimizer, seeds)
    for key, names in used.items():
        training.USED[key] |= names
    return rows


def runs(optimizer: str, seeds: list[int]) -> tuple[list[Row], dict]:
    """Return the rows of one averaging method, the same in every process, and the provenance."""
    rows = []
    for lr in RATES:
        for seed in seeds:
            loss, sent = trained({**sweeps.adamw(lr), **RULES[optimizer]}, seed, STEPS)
            rows.append(Row("loss", seed, loss, settings={"lr": lr}))
    return [*rows, Row("bytes", seeds[0], sent)], training.USED


def trained(optimizer: dict, seed: int, count: int, **data: int) -> tuple[float, int]:
    """Return the held-out loss (nats) after `count` steps, and the bytes this process has sent.
    data: keys that replace the config's."""
    run = built(optimizer, seed, "wikitext2", "small", experiment={"sharding": "none"}, data=data)
    gradients = [0]
    if size() > 1:
        assert isinstance(run.objective.applied, DistributedDataParallel)
        run.objective.applied.register_comm_hook(gradients, counted)
    rates = Schedule(run.optimizer, 1, count, "linear", warmup_epochs=sweeps.WARMUP)
    rates.set_lr(0)
    for done in steps(run, count):
        rates.set_lr(done)
    set_mode(run.optimizer, "eval")
    held_out = tuple(tensor[:sweeps.HELD_OUT["wikitext2"]] for tensor in run.data.eval)
    loss = float(run.objective.measure(run.objective.loss_fn, *held_out)[0])
    weights = getattr(run.optimizer, "diagnostics", {}).get("outer_bytes", 0)
    return loss, sum(gradients) + int(weights)


def counted(counts: list[int], bucket: distributed.GradBucket
            ) -> torch.futures.Future[torch.Tensor]:
    """Communication hook: DDP's all-reduce, with the bytes recorded in `counts`."""
    counts.append(bucket.buffer().nbytes)
    world = distributed.group.WORLD
    assert world is not None
    return allreduce_hook(world, bucket)


def shares(rows: Rows) -> dict[str, float]:
    """Return each method's bytes over those of averaging every gradient."""
    sent = {name: values[0] for name, values in rows.where(axis="bytes").tree("optimizer").items()}
    return {name: value / sent[BASE] for name, value in sent.items()}


def costs(rows: Rows) -> dict[str, Evidence]:
    """Return the loss increase in percent, each at its best rate, paired by seed."""
    best = {name: sweeps.best_losses(grid) for name, grid in sweeps.grids_of(rows).items()}
    return {name: sample([100 * (a / b - 1) for a, b in zip(losses, best[BASE], strict=True)])
            for name, losses in best.items() if name != BASE}


def judge(rows: Rows) -> Verdict:
    """Judge by the bytes and the loss of either method."""
    sent, increases = shares(rows), costs(rows)
    return Verdict(judge_any([judge_all([judge_exact(sent[name] < SHARE), judge_below(cost, BOUND)])
                              for name, cost in increases.items()]), ", ".join(
        f"{name} {100 * sent[name]:.3g} % of the bytes, loss {interval(cost.estimate)} % higher"
        for name, cost in increases.items()))


def tables(rows: Rows) -> dict:
    """Return a table of best rates, losses and bytes."""
    lines: list[tuple] = [("averages", "best lr", "loss", "bytes a process sends",
                           "of every gradient's")]
    for name, grid in sweeps.grids_of(rows).items():
        (sent,) = rows.values(optimizer=name, axis="bytes")
        lines.append((name, sweeps.best_of_grid(grid), sweeps.best_losses(grid), f"{sent:,.0f}",
                      f"{100 * shares(rows)[name]:.3g} %"))
    return {"losses": lines}
