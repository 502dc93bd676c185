"""ARS2C (dmf-archive/ARS addb47c and fd447fd): decay rates of the moments from an alignment.

    beta = lowest + (highest - lowest) al          of each range, al as the last update left it

"element": al has an entry for each weight, sqrt(r_i q_j), with
    r_i = (cos(c_i., O_i.) + 1) / 2 over rows, q_j likewise over columns;
    before the first c the group's betas. Of a 3-D stack (heads, d, n), as released, rows run over
    d and columns over heads.
"scalar": al = |<c, O>| / ||O|| sigmoid(||C||), one number per matrix, 0 before the first. It is not
    bounded by 1 but by sqrt(rank): beta2 > 1 then makes v_hat negative. A warning says so.

As released, biases are corrected by 1 - beta^t with today's beta, which is exact for a constant
one only. Two independent random matrices have al = 0.5 up to a few hundredths, so that "element" is
close to fixed betas in the middle of its ranges.
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
    """beta1 and beta2 of one tensor, numbers or shaped as it."""
    level = entry.get("alignment", 0.0 if rule == "scalar" else None)
    if level is None:
        return betas
    beta1, beta2 = (low + (high - low) * level for low, high in ranges)
    return beta1, beta2


def whitened_by(m: Tensor, v: Tensor, grad: Tensor, betas: Betas, step: int, eps: float
                ) -> tuple[Tensor, Tensor]:
    """m_hat and u = m_hat / (sqrt(v_hat) + eps) after m and v, in place, have seen `grad`."""
    beta1, beta2 = betas
    m.mul_(beta1).add_(grad * (1 - beta1))
    v.mul_(beta2).add_(grad * grad * (1 - beta2))
    m_hat = m / (1 - beta1**step)
    return m_hat, m_hat / ((v / (1 - beta2**step)).sqrt() + eps)


def alignment(c: Tensor, polar: Tensor) -> Tensor:
    """al of "element", shaped as both."""
    shares = [((_unit(c, dim) * _unit(polar, dim)).sum(dim, keepdim=True) + 1) / 2
              for dim in (1, 0)]
    return (shares[0] * shares[1]).clamp_min_(0).sqrt_()


def scalar_alignment(cosine: Tensor, norm: Tensor) -> Tensor:
    """al of "scalar" from |<c, O>| / ||O|| and ||C||; warns where it leaves [0, 1]."""
    level = cosine * torch.sigmoid(norm)
    _warn(level)
    return level


def _unit(tensor: Tensor, dim: int) -> Tensor:
    return tensor / (torch.linalg.vector_norm(tensor, dim=dim, keepdim=True) + EPS)


@torch.compiler.disable
def _warn(level: Tensor) -> None:
    if level > 1:
        warnings.warn(f"beta_rule = \"scalar\": an alignment of {float(level):.3g} puts the decay "
                      "rates above their range; from beta2 = 1 on the weights are NaN",
                      stacklevel=2)
