"""SVRG and SGD on three equations in two unknowns."""

from collections.abc import Iterable

import numpy as np

from exp.report.judgement import judge_exact
from exp.report.rows import Row, Rows
from exp.theory.statement import Verdict

A, B = ((1.0, 0.0), (1.0, 1.0), (0.0, 2.0)), (1.0, 0.0, 2.0)
RATE, EPOCHS, INNER = 0.2, 60, 6
GRID = {"optimizer": ("SVRG", "SGD")}
Vector = np.ndarray


def slope(x: Vector, i: int) -> Vector:
    """Gradient of (<a_i, x> - b_i)^2 / 2."""
    return np.array(A[i]) * (np.array(A[i]) @ x - B[i])


def full_slope(x: Vector) -> Vector:
    """Return the mean of `slope` over all equations."""
    return sum((slope(x, i) for i in range(len(A))), np.zeros_like(x)) / len(A)


def epoch(x: Vector, rate: float, inner: int, reduced: bool) -> list[Vector]:
    """Return the iterates of one epoch from the snapshot x."""
    snapshot, mean, path = x, full_slope(x), []
    for step in range(inner):
        i = step % len(A)
        x = x - rate * (slope(x, i) - slope(snapshot, i) + mean if reduced else slope(x, i))
        path.append(x)
    return path


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Yield the distance from the solution after the last epoch; nothing is random."""
    solution, x = np.linalg.lstsq(np.array(A), np.array(B), rcond=None)[0], np.zeros(2)
    for _ in range(EPOCHS):
        x = epoch(x, RATE, INNER, optimizer == "SVRG")[-1]
    yield Row("distance", 0, float(np.linalg.norm(x - solution)))


def judge(rows: Rows) -> Verdict:
    """Judge by the distances."""
    (svrg,), (sgd,) = (rows.tree("optimizer")[name] for name in GRID["optimizer"])
    return Verdict(judge_exact(svrg < 1e-12 and sgd > 0.01),
                   f"distance from the solution {svrg:.2g} (SVRG), {sgd:.2g} (SGD)")
