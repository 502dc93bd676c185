"""Does the shear force change more slowly than the gradient, and does reusing it improve the loss?
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from exp.report.evidence import sample
from exp.report.judgement import judge_above, judge_all
from exp.report.rows import Row, Rows
from exp.report.statistics import mean
from exp.theory.perturbations import gradient_and_shear
from exp.theory.statement import Verdict, tally
from exp.theory.sweeps import average
from exp.theory.training import batches, built, evaluate, examples, steps

OPTIMIZER = {"name": "ars2_neo", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 1.0, "k": 1}
# Task -> the step before each window, its length, scale.
WINDOWS = {"grokking": ((40, 180), 60, "full"), "cifar": ((20, 100), 40, "small"),
           "wikitext2": ((20, 100), 40, "small")}
LAGS = (1, 2, 5, 10, 20)
KINDS = ("gradient", "shear force")
LEAST = 0.01  # smallest relevant difference of cosines
PERIODS = (0, 1, 2, 5, 10, 20)  # k; 0 is Base
RUN_STEPS = 160


def autocorrelation(series: Tensor, lags: tuple[int, ...]) -> list[float]:
    """Return, per lag, the mean cosine of two rows of `series` (steps, size) that are `lag`
    apart."""
    unit = F.normalize(series, dim=1)
    return [float((unit[:-lag] * unit[lag:]).sum(1).mean()) for lag in lags]


def measure(seeds: list[int]) -> Iterable[Row]:
    """Yield autocorrelations (axis "cosine") in every window, then final losses of runs with each
    period."""
    for seed in seeds:
        for task in WINDOWS:
            for window, series in windows(task, seed).items():
                for (which, kind), vectors in series.items():
                    settings = {"window": window, "batches": which, "kind": kind}
                    cosines = autocorrelation(torch.stack(vectors), LAGS)
                    for lag, value in zip(LAGS, cosines, strict=True):
                        yield Row("cosine", seed, value, task, settings={**settings, "lag": lag})
        for k in PERIODS:
            for axis, value in short_run(k, seed).items():
                yield Row(axis, seed, value, "grokking", "ARS2-Neo", {"k": k})


def windows(task: str, seed: int) -> dict[str, dict[tuple[str, str], list[Tensor]]]:
    """Map window -> (batches, kind) -> the vectors of its steps, along a run of ARS2-Neo Sync."""
    starts, length, scale = WINDOWS[task]
    run = built(OPTIMIZER, seed, task, scale)
    params = list(run.model.parameters())
    again = next(run.data.train.epoch(0))
    series: dict = {}
    for done, batch in zip(range(max(starts) + length), batches(run), strict=False):
        for before in starts:
            if before <= done < before + length:
                window = series.setdefault(f"steps {before + 1} to {before + length}", {})
                for which, seen in (("training batches", batch), ("one batch again", again)):
                    vectors = gradient_and_shear(run, seen, params)
                    for kind, vector in zip(KINDS, vectors, strict=True):
                        window.setdefault((which, kind), []).append(vector)
        run.optimizer.step(run.objective.on(batch))
    return series


def short_run(k: int, seed: int) -> dict[str, float]:
    """Return the final losses over all training and all held-out pairs, and the gradient
    evaluations."""
    run = built({**OPTIMIZER, "k": k}, seed)
    for _ in steps(run, RUN_STEPS):
        pass
    ends = {"training loss": evaluate(run, *examples(run))["eval_loss"],
            "held-out loss": evaluate(run, *run.data.eval)["eval_loss"]}
    return {**ends, "evaluations": run.objective.gradient_evaluations}


def trees(rows: Rows) -> dict[tuple, dict]:
    """Map (task, window, batches) -> kind -> lag -> cosines."""
    by_task = rows.where(axis="cosine").tree("task", "window", "batches", "kind", "lag")
    return {(task, window, which): kinds for task, windows in by_task.items()
            for window, batches in windows.items() for which, kinds in batches.items()}


def judge(rows: Rows) -> Verdict:
    """Judge by the autocorrelations at every lag; the text gives those at the middle lag on
    training batches, over the windows."""
    every, lag = trees(rows), LAGS[len(LAGS) // 2]
    above = [judge_above(sample([a - b for a, b in zip(kinds["shear force"][at], cosines,
                                                      strict=True)]), 0.0, LEAST)
             for kinds in every.values() for at, cosines in kinds["gradient"].items()]
    parts = []
    for kind in KINDS:
        means = [average(kinds[kind][lag]) for (*_, which), kinds in every.items()
                 if which == "training batches"]
        parts.append(f"{kind} {min(means):.2f} to {max(means):.2f}")
    return Verdict(judge_all(above),
                   f"cosine {lag} steps apart: {', '.join(parts)}; {tally(above)}")


def tables(rows: Rows) -> dict:
    """Return tables of autocorrelations, and of the runs."""
    keys = ("training loss", "held-out loss", "evaluations")
    return {
        "cosines": [("mean cosine at lag", "", *map(str, LAGS)),
                    *((", ".join(place), kind, *(kinds[kind][lag] for lag in LAGS))
                      for place, kinds in trees(rows).items() for kind in KINDS)],
        "runs": [("k", *keys), *((f"{k} (Base)" if k == 0 else str(k), *map(axes.get, keys))
                                 for k, axes in rows.tree("k", "axis").items())]}


def figure(rows: Rows) -> dict:
    """Return autocorrelation over lag: one panel per window."""
    panels: dict = {}
    for (task, window, which), kinds in trees(rows).items():
        panels.setdefault(f"{task}, {window}", {}).update({
            f"{kind}, {which}": (LAGS, [mean(kinds[kind][lag]).value for lag in LAGS])
            for kind in KINDS})
    return {"panels": panels, "most": 2, "xlabel": "lag (steps)", "ylabel": "mean cosine",
            "xscale": "log", "xticks": LAGS, "sharey": True}
