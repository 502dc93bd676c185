"""Test functions of a matrix with known minima, and the plane in which each is plotted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DOUBLE = torch.float64


@dataclass(frozen=True)
class Function:
    """A function f of a float64 weight W in the shape of `start`.

    point: maps coordinates x and y, tensors of one shape, to the weights at those points of the
    plane, of that shape + the shape of W. coordinates: maps W to (x, y), its projection on the
    plane. minima: (x, y) of each minimum. box: (x from, x to, y from, y to) of the picture. note:
    the formula, for pages and figures.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    start: Tensor
    minima: tuple[tuple[float, float], ...]
    box: tuple[float, float, float, float]
    note: str
    point: Callable[[Tensor, Tensor], Tensor] = lambda x, y: torch.stack([x, y], -1).unsqueeze(-2)
    coordinates: Callable[[Tensor], Tensor] = lambda w: w.reshape(2)


def rosenbrock(w: Tensor) -> Tensor:
    """(1 - x)^2 + 100 (y - x^2)^2 of w (..., 1, 2): a curved valley, minimum 0 at (1, 1)."""
    x, y = w[..., 0, 0], w[..., 0, 1]
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def beale(w: Tensor) -> Tensor:
    """Beale's function of w (..., 1, 2): flat, with steep walls; minimum 0 at (3, 0.5)."""
    x, y = w[..., 0, 0], w[..., 0, 1]
    return ((1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2
            + (2.625 - x + x * y**3) ** 2)


def himmelblau(w: Tensor) -> Tensor:
    """(x^2 + y - 11)^2 + (x + y^2 - 7)^2 of w (..., 1, 2): four equal minima."""
    x, y = w[..., 0, 0], w[..., 0, 1]
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def quadratic(w: Tensor) -> Tensor:
    """(x^2 + 100 y^2) / 2 of w (..., 1, 2), turned by 30 degrees: condition number 100."""
    x, y = w[..., 0, 0], w[..., 0, 1]
    cosine, sine = 3**0.5 / 2, 0.5
    return ((cosine * x + sine * y) ** 2 + 100 * (cosine * y - sine * x) ** 2) / 2


SIZE, CONDITION = 8, 1000.0


def _matrix_quadratic() -> Function:
    """||A^(1/2) (W - T) B^(1/2)||_F^2 / 2 with A, B of condition CONDITION in random bases."""
    generator = torch.Generator().manual_seed(0)

    def basis() -> Tensor:
        return torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=DOUBLE))[0]

    eigenvalues = torch.logspace(0, -torch.log10(torch.tensor(CONDITION)).item(), SIZE,
                                 dtype=DOUBLE)
    left, right = basis(), basis()
    a, b = ((q * eigenvalues) @ q.T for q in (left, right))
    target = torch.randn(SIZE, SIZE, generator=generator, dtype=DOUBLE)
    # The steepest direction, and one with 1/2700 of its curvature.
    steep = torch.outer(left[:, 0], right[:, 0])
    flat = torch.outer(left[:, SIZE // 2], right[:, SIZE // 2])

    def value(w: Tensor) -> Tensor:
        error = w - target
        return ((a @ error @ b) * error).sum((-2, -1)) / 2

    def coordinates(w: Tensor) -> Tensor:
        return torch.stack([((w - target) * steep).sum(), ((w - target) * flat).sum()])

    def point(x: Tensor, y: Tensor) -> Tensor:
        return target + x[..., None, None] * steep + y[..., None, None] * flat

    start = target + 1.5 * steep + 1.5 * flat + torch.randn(
        SIZE, SIZE, generator=generator, dtype=DOUBLE) / SIZE
    return Function("matrix", value, start, ((0.0, 0.0),), (-2.2, 2.2, -2.2, 2.2),
                    f"||A^(1/2) (W - T) B^(1/2)||^2 / 2, W {SIZE} x {SIZE}, A and B of condition "
                    f"{CONDITION:g}; the plane of a steep and of a flat singular direction through "
                    "the minimum", point, coordinates)


def _plane(name: str, value: Callable, start: tuple, minima: tuple, box: tuple) -> Function:
    note = " ".join((value.__doc__ or "").split()).replace(" of w (..., 1, 2)", "").rstrip(".")
    return Function(name, value, torch.tensor([start], dtype=DOUBLE), minima, box, note)


FUNCTIONS = {f.name: f for f in (
    _plane("rosenbrock", rosenbrock, (-1.2, 1.0), ((1.0, 1.0),), (-2.0, 2.0, -1.0, 3.0)),
    _plane("beale", beale, (-1.5, 1.5), ((3.0, 0.5),), (-4.5, 4.5, -2.5, 2.5)),
    _plane("himmelblau", himmelblau, (-0.3, -1.0),
           ((3.0, 2.0), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848126)),
           (-5.5, 5.5, -5.5, 5.5)),
    _plane("quadratic", quadratic, (-4.0, 1.0), ((0.0, 0.0),), (-5.0, 5.0, -3.0, 3.0)),
    _matrix_quadratic(),
)}
