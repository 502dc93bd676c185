"""KL-SOAP and KL-Shampoo, Lin et al. 2025, arXiv 2509.03378: jointly whitened Kronecker factors.

Each Kronecker factor is the covariance of the gradient after whitening the other side: the
fixed point that minimizes the Kullback-Leibler divergence from the gradients' covariance.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from .parts import checks
from .parts.kronecker import accumulate, eigh, matrix_gradient, rotated, rotated_back, sides
from .parts.matrix import MatrixOptimizer

__all__ = ["KLSOAP"]

SEARCH_SPACE = {
    "lr": (3e-4, 3e-2, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.98], [0.95, 0.9], [0.95, 0.95]],
    "second_moment": [True, False],
    "precondition_frequency": [1, 10],
}
COST = {"gradient_evaluations": 1, "state_tensors": 8}  # 2 like the matrix, 4 square, 2 long
TESTED_AGAINST = "plain numpy, the authors' class"

LEAST, MOST = 10, 4000  # bounds of an inverse root: the side's length between these


class KLSOAP(MatrixOptimizer):
    """KL-SOAP, or KL-Shampoo (the authors' best) with second_moment=False, for a matrix (m, n).

    State besides M and V: factors S_a (m, m) and S_b (n, n), bases Q_a and Q_b, inverse square
    roots of the eigenvalues r_a (m) and r_b (n). b = shampoo_beta. U uses the new M and V; all
    right sides use the old S, Q and r:

        Y = Q_a^T G Q_b,   M <- beta1 M + (1 - beta1) G,   V <- beta2 V + (1 - beta2) Y^2
        U = Q_a (Q_a^T M Q_b / (sqrt(V) + eps)) Q_b^T                      KL-SOAP
        U = Q_a (Q_a^T M Q_b s / (1 + eps s)) Q_b^T,  s = r_a r_b^T        KL-Shampoo
        S_a <- b S_a + (1 - b) G Q_b diag(r_b^2) Q_b^T G^T / n,   S_b likewise, / m
        r_a^-2 <- b r_a^-2 + (1 - b) row means of (Y r_b)^2,      r_b likewise, over columns
        every precondition_frequency steps: Q_a <- qr(S_a Q_a) with the new S_a, Q_b likewise
        W <- (1 - lr weight_decay) (W - lr U)

    The order is the authors': no bias correction, decay after the update. The first step only
    computes the factors, (1 - b) G G^T / n, their eigenvectors and r = init_factor^(-1/2), and does
    not change the weights. Bases are not sorted, so V and r need no reordering. r is clamped to the
    length of the side, itself clamped to [10, 4000]; a row without gradient reaches this limit. A
    side longer than max_precond_dim has Q = I and r = 1.

    Deviations from the authors' kl_opt.py (KL-Methods a02e622): float32 throughout (theirs:
    bfloat16 except for QR and eigh); vectors take AdamW; defaults are those of their docstring
    (their code: lr 1e-4, betas (0.9, 0.98)); shampoo_beta is independent of betas (theirs is
    betas[1]).

    Cost: 1 gradient evaluation per step, 2 + 2 (m^2 + n^2) / (m n) state tensors per matrix and
    m + n numbers (1 tensor less for KL-Shampoo), products of 5 m n (m + n) per step, and SOAP's QR
    at a refresh. Raises ValueError for an invalid argument, a sparse gradient or a complex
    parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        second_moment: bool = True,
        init_factor: float = 0.1,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
    ) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.pair_of_fractions(betas=betas)
        checks.fraction(shampoo_beta=shampoo_beta)
        checks.at_least(1, precondition_frequency=precondition_frequency)
        checks.at_least(0, max_precond_dim=max_precond_dim)
        if not init_factor > 0:
            raise ValueError(f"init_factor must be > 0, got {init_factor!r}")
        super().__init__(params, {
            "lr": lr, "betas": tuple(betas), "shampoo_beta": shampoo_beta, "eps": eps,
            "weight_decay": weight_decay, "second_moment": second_moment,
            "init_factor": init_factor, "precondition_frequency": precondition_frequency,
            "max_precond_dim": max_precond_dim})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        for p in params:
            entry, grads = self.state[p], matrix_gradient(p)
            if "step" not in entry:
                start(entry, grads, group)
                continue
            entry["step"] += 1
            seen = rotated(grads, entry)
            u = direction(entry, grads, seen, group)
            update_factors(entry, grads, seen, group)
            p.add_(u.reshape(p.shape), alpha=-group["lr"])
            p.mul_(1 - group["lr"] * group["weight_decay"])


def start(entry: dict, grads: Tensor, group: dict) -> None:
    """Initialize the state: factors and bases from the first gradients (stack, m, n), moments 0."""
    entry.update(step=0, exp_avg=torch.zeros_like(grads))
    if group["second_moment"]:
        entry["exp_avg_sq"] = torch.zeros_like(grads)
    m, n = grads.shape[-2:]
    for side in sides(grads.shape, group["max_precond_dim"]):
        other = n if side == "left" else m
        factor = accumulate(entry, side, grads / other**0.5, group["shampoo_beta"])
        entry[f"{side}_basis"] = eigh(factor)[1]
        root = grads[..., :1] if side == "left" else grads[..., :1, :]
        entry[f"{side}_root"] = torch.full_like(root, group["init_factor"] ** -0.5)


def direction(entry: dict, grads: Tensor, seen: Tensor, group: dict) -> Tensor:
    """Update the moments and return U; grads, seen (Y of the class docstring) and U have the shape
    (stack, m, n)."""
    beta1, beta2 = group["betas"]
    entry["exp_avg"].lerp_(grads, 1 - beta1)
    momentum = rotated(entry["exp_avg"], entry)
    if group["second_moment"]:
        entry["exp_avg_sq"].mul_(beta2).addcmul_(seen, seen, value=1 - beta2)
        return rotated_back(momentum / (entry["exp_avg_sq"].sqrt() + group["eps"]), entry)
    scale = entry.get("left_root", 1.0) * entry.get("right_root", torch.ones_like(seen[..., :1, :]))
    return rotated_back(momentum * scale / (1 + group["eps"] * scale), entry)


def update_factors(entry: dict, grads: Tensor, seen: Tensor, group: dict) -> None:
    """Update S and r of both sides, and Q every precondition_frequency steps; seen is Y."""
    beta, refresh = group["shampoo_beta"], entry["step"] % group["precondition_frequency"] == 0
    roots = {side: entry.get(f"{side}_root", 1.0) for side in ("left", "right")}
    half = {"left": grads @ entry["right_basis"] if "right_basis" in entry else grads,
            "right": entry["left_basis"].mT @ grads if "left_basis" in entry else grads}
    for side, other, dim in (("left", "right", -1), ("right", "left", -2)):
        if side not in entry:
            continue
        factor = accumulate(entry, side, half[side] * roots[other] / grads.shape[dim] ** 0.5, beta)
        spread = (seen * roots[other]).square().mean(dim, keepdim=True)
        values = roots[side].pow(-2).mul_(beta).add_(spread, alpha=1 - beta)
        bound = max(LEAST, min(grads.shape[-3 - dim], MOST))
        entry[f"{side}_root"] = values.rsqrt().clamp_max(bound)
        if refresh:
            entry[f"{side}_basis"] = torch.linalg.qr(factor @ entry[f"{side}_basis"]).Q
