"""Do flatter end points generalize better? Curvature against the generalization gap."""

import math
from collections.abc import Iterable

from scipy.stats import spearmanr

from data.batches import Batches
from exp.harness.build import Built
from exp.harness.curvature import curvature
from exp.report.evidence import sample
from exp.report.judgement import judge_above, judge_all
from exp.report.rows import Row, Rows
from exp.report.tables import Lines, interval
from exp.theory.statement import Verdict
from exp.theory.training import built, evaluate, examples

MEASURES = ("top_eigenvalue", "trace", "sam_sharpness")
REST = {"lr": 3e-3, "betas": [0.9, 0.98]}
ARS = {"name": "ars2_neo", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.1, "adamw": REST}
ADAMW = {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.98], "weight_decay": 0.1}
RULES = {
    "AdamW": ADAMW,
    "SAM-AdamW": {**ADAMW, "sam": {"rho": 0.05}},
    "Muon": {"name": "muon", "lr": 0.02, "weight_decay": 0.1, "adamw": REST},
    "ARS2-Neo Base": {**ARS, "k": 0},
    "ARS2-Neo Sync": {**ARS, "k": 1},
    "ARS2-Neo AGA": {**ARS, "k": 10, "adaptive_sync": True},
}
TASKS = {
    "grokking": {},
    "cifar": {"data": {"subset": 0.005, "batch_size": 50, "crop": 0, "flip": False}},
}
TARGET, MAX_EPOCHS = 0.1, 30  # training loss (nats) at which a run ends
EXAMPLES, HELD_OUT = 50, 500  # of curvature; of the held-out loss
COLUMNS = ("epochs", "training loss", "gap", *MEASURES)
GRID = {"task": TASKS, "optimizer": RULES}
KEYS = ("task", "optimizer", "axis")
AGREES = 0.5


def measure(seeds: list[int], task: str, optimizer: str) -> Iterable[Row]:
    """Yield losses, gap, epochs and curvature at the end point of each seed."""
    for seed in seeds:
        for axis, value in end_point(optimizer, task, seed).items():
            yield Row(axis, seed, value)


def trained(optimizer: dict, task: str, seed: int, most: int | None = None,
            count: int | None = None) -> tuple[Built, int, float]:
    """A run to TARGET, or for `most` epochs (MAX_EPOCHS), on the first `count` training examples
    (all); its epochs and its training loss (nats), nan without an epoch."""
    run = built(optimizer, seed, task, "small", **TASKS[task])
    trained_on, batches, loss = examples(run, count), run.data.train, math.nan
    if count is not None:
        batches = Batches(tuple(tensor[:count] for tensor in batches.tensors), batches.batch_size,
                          batches.seed, augment=batches.augment)
    for epoch in range(MAX_EPOCHS if most is None else most):
        for batch in batches.epoch(epoch):
            run.optimizer.step(run.objective.on(batch))
        loss = evaluate(run, *trained_on)["eval_loss"]
        run.model.train()
        if loss <= TARGET:
            return run, epoch + 1, loss
    return run, MAX_EPOCHS if most is None else most, loss


def end_point(rule: str, task: str, seed: int) -> dict[str, float]:
    """Return losses, gap, epochs and curvature at the end of a run."""
    run, epochs, train = trained(RULES[rule], task, seed)
    held_out = evaluate(run, *(t[:HELD_OUT] for t in run.data.eval))["eval_loss"]
    run.model.train()
    batch = tuple(tensor[:EXAMPLES] for tensor in examples(run))
    params = [p for p in run.model.parameters() if p.requires_grad]
    return {"epochs": epochs, "training loss": train, "gap": held_out - train,
            **curvature(run.model, batch, params, seed)}


def correlations(by_name: dict, key: str, of: str = "gap") -> list[float]:
    """Return Spearman's correlation over the optimizers per seed; 0 if one of the two is
    constant."""
    seeds = zip(*([zip(entry[key], entry[of], strict=True) for entry in by_name.values()]),
                strict=True)
    pairs = (tuple(zip(*of_seed, strict=True)) for of_seed in seeds)
    return [float(spearmanr(*columns).statistic) if all(len(set(c)) > 1 for c in columns) else 0.0
            for columns in pairs]


def judge(rows: Rows) -> Verdict:
    """Judge by the rank correlations with the gap."""
    tests = {task: {key: sample(correlations(by_name, key)) for key in MEASURES}
             for task, by_name in rows.tree(*KEYS).items()}
    return Verdict(
        judge_all([judge_above(rank, AGREES) for by_key in tests.values()
                   for rank in by_key.values()]),
        "rank correlation with the gap: " + "; ".join(f"{task} " + ", ".join(
            f"{key.replace('_', ' ')} {interval(rank.estimate)}" for key, rank in by_key.items())
            for task, by_key in tests.items()))


def tables(rows: Rows) -> dict:
    """Return tables of the correlations, and of the end points of each task."""
    titles = [key.replace("_", " ") for key in COLUMNS]
    lines: Lines = [("rank correlation with the gap", *titles[3:], "epochs", "training loss")]
    content: dict[str, Lines | str] = {"correlations": lines}
    for task, by_name in rows.tree(*KEYS).items():
        lines.append((task, *(correlations(by_name, key)
                              for key in (*MEASURES, "epochs", "training loss"))))
        content[task] = [(task, *titles), *((name, *(axes[key] for key in COLUMNS))
                                            for name, axes in by_name.items())]
        late = sum(loss > TARGET for loss in rows.values(task=task, axis="training loss"))
        content[f"{task}_late"] = (f"\n\n{late} of these runs did not reach {TARGET:g}."
                                   if late else "")
    return content


def figure(rows: Rows) -> dict:
    """Return the gap over each measure: one panel per task and measure."""
    return {"panels": {f"{task}: {key.replace('_', ' ')}": {
                name: (axes[key], axes["gap"]) for name, axes in by_name.items()}
                for task, by_name in rows.tree(*KEYS).items() for key in MEASURES},
            "xlabel": "curvature of the training loss", "ylabel": "gap (nats)", "points": True,
            "xscale": "log"}
