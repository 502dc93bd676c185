"""Does the entropy of singular values early in training predict the loss at its end?"""

from collections.abc import Iterable

import torch
from scipy.stats import spearmanr

from exp.harness.build import Built
from exp.harness.diagnostics import spectrum
from exp.papers.ars2_neo.statements.flatness import HELD_OUT, RULES
from exp.report.evidence import Evidence, sample
from exp.report.judgement import judge_above
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory.statement import Verdict
from exp.theory.training import built, evaluate, matrices

FACTORS = (1 / 3, 1.0, 3.0)
EARLY, LATE = 5, 30  # epochs
POINTS = len(RULES) * len(FACTORS)
LOSS, WEIGHTS, CHANGE, END = ("early held-out loss", "entropy of the weights",
                              "entropy of the change", "final held-out loss")
GRID = {"optimizer": RULES, "factor": FACTORS}


def measure(seeds: list[int], optimizer: str, factor: float) -> Iterable[Row]:
    """Yield entropies and held-out loss after EARLY epochs, and held-out loss after LATE epochs."""
    for seed in seeds:
        rule: dict = RULES[optimizer]
        table = {**rule, "lr": factor * rule["lr"]}
        run = built(table, seed, scale="small")
        start = {name: p.detach().clone() for name, p in matrices(run.model).items()}
        for epoch in range(LATE):
            for batch in run.data.train.epoch(epoch):
                run.optimizer.step(run.objective.on(batch))
            if epoch + 1 == EARLY:
                yield Row(LOSS, seed, held_out(run))
                now = {name: p.detach() for name, p in matrices(run.model).items()}
                yield Row(WEIGHTS, seed, entropy(list(now.values())))
                yield Row(CHANGE, seed, entropy([now[name] - start[name] for name in now]))
        yield Row(END, seed, held_out(run))


def held_out(run: Built) -> float:
    """Return the held-out loss (nats)."""
    loss = evaluate(run, *(tensor[:HELD_OUT] for tensor in run.data.eval))["eval_loss"]
    run.model.train()
    return loss


def entropy(tensors: list[torch.Tensor]) -> float:
    """Return the mean normalized spectral entropy, 1 if all singular values are equal."""
    return sum(spectrum(tensor)["entropy"] for tensor in tensors) / len(tensors)


def strengths(rows: Rows, axis: str) -> list[float]:
    """Return |Spearman's correlation| of `axis` with the final loss over all runs, per seed."""
    correlations = []
    for seed in rows.levels("seed"):
        runs = rows.where(seed=seed)
        pair = [[value if value is not None else float("inf") for value in runs.values(axis=name)]
                for name in (axis, END)]
        correlations.append(abs(float(spearmanr(*pair).statistic))
                            if min(len(set(values)) for values in pair) > 1 else 0.0)
    return correlations


def gain(rows: Rows) -> Evidence:
    """Return how much stronger the weights' entropy correlates with the final loss than the early
    loss does."""
    return sample([a - b for a, b in zip(strengths(rows, WEIGHTS), strengths(rows, LOSS),
                                         strict=True)])


def judge(rows: Rows) -> Verdict:
    """Judge by the gain of the entropy of the weights over the early loss."""
    return Verdict(
        judge_above(gain(rows), 0.0),
        "absolute rank correlation with the final held-out loss: " + ", ".join(
            f"{interval(sample(strengths(rows, axis)).estimate)} ({axis})"
            for axis in (WEIGHTS, CHANGE, LOSS)))


def tables(rows: Rows) -> dict:
    """Return tables of the correlations, and of all measurements."""
    lines = [("|rank correlation| with the final held-out loss", "")]
    lines += [(axis, interval(sample(strengths(rows, axis)).estimate))
              for axis in (WEIGHTS, CHANGE, LOSS)]
    return {"correlations": lines, "means": rows.pivot(("optimizer", "factor"), "axis")}
