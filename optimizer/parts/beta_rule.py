"""ARS2C (dmf-archive/ARS addb47c and fd447fd): decay rates of the moments from the alignment al of
the curvature direction c with the update O. C and c are defined in parts/curvature.py.

    beta = low + (high - low) al          (low, high): beta1_range or beta2_range; al of the last
                                          update

"element": one al per weight, sqrt(r_i q_j), with
    r_i = (cos(c_i., O_i.) + 1) / 2 over rows, q_j likewise over columns.
    Before the first c the group's betas are used. In a 3-D stack (heads, d, n), as released, rows
    run over d and columns over heads.
"scalar": al = |<c, O>| / ||O|| sigmoid(||C||), one number per matrix, 0 before the first c. Its
    bound is sqrt(rank), not 1, and beta2 > 1 makes v_hat negative: al > 1 raises a warning. The
    check is one host synchronization per sync step.

As released, bias correction divides by 1 - beta^t with the current beta, which is exact only for a
constant beta. Two independent random matrices have al = 0.5 up to a few hundredths, so "element" is
then close to fixed betas in the middle of the ranges.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

BetaRule = Literal["fixed", "element", "scalar"]
Betas = tuple[float | Tensor, float | Tensor]

EPS = 1e-12  # added to norms


def decay_rates(entry: dict, rule: str, ranges: Iterable[Sequence[float]],
                betas: tuple[float, float]) -> Betas:
    """Return (beta1, beta2) of one tensor: numbers, or tensors of its shape for "element"."""
    level = entry.get("alignment", 0.0 if rule == "scalar" else None)
    if level is None:
        return betas
    beta1, beta2 = (low + (high - low) * level for low, high in ranges)
    return beta1, beta2


def whitened_by(m: Tensor, v: Tensor, grad: Tensor, betas: Betas, step: int, eps: float
                ) -> tuple[Tensor, Tensor]:
    """Update m and v in place with `grad`; return m_hat and u = m_hat / (sqrt(v_hat) + eps)."""
    beta1, beta2 = betas
    m.mul_(beta1).add_(grad * (1 - beta1))
    v.mul_(beta2).add_(grad * grad * (1 - beta2))
    m_hat = m / (1 - beta1**step)
    return m_hat, m_hat / ((v / (1 - beta2**step)).sqrt() + eps)


def alignment(c: Tensor, polar: Tensor) -> Tensor:
    """Return al of "element"; c, polar and the result have one shape."""
    shares = [((_unit(c, dim) * _unit(polar, dim)).sum(dim, keepdim=True) + 1) / 2
              for dim in (1, 0)]
    return (shares[0] * shares[1]).clamp_min_(0).sqrt_()


def _unit(tensor: Tensor, dim: int) -> Tensor:
    return tensor / (torch.linalg.vector_norm(tensor, dim=dim, keepdim=True) + EPS)


@torch.compiler.disable
def warn_above_one(levels: Sequence[Tensor]) -> None:
    """Warn if one of the alignments `levels` of "scalar" exceeds 1; one host synchronization."""
    highest = float(torch.stack(list(levels)).max())
    if highest > 1:
        warnings.warn(f"beta_rule = \"scalar\": an alignment of {highest:.3g}, above 1, "
                      "puts decay rates above their range; beta2 >= 1 makes the weights NaN",
                      stacklevel=2)
