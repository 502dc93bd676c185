"""SOAP, Vyas et al. 2024, arXiv 2409.11321, Algorithm 3: Adam in the eigenbasis of Shampoo."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .parts import checks
from .parts.kronecker import adam_in_eigenbasis
from .parts.matrix import MatrixOptimizer

__all__ = ["SOAP"]

SEARCH_SPACE = {
    "lr": (3e-4, 3e-2, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.95], [0.95, 0.95], [0.95, 0.99]],
    "precondition_frequency": [1, 10, 100],
}
COST = {"gradient_evaluations": 1, "state_tensors": 6}  # two of shape (m, n), four square
TESTED_AGAINST = "plain numpy, torch.optim.AdamW, pytorch_optimizer"


class SOAP(MatrixOptimizer):
    """Adam on the gradient rotated by Q_L, Q_R, the eigenvectors of its Kronecker statistics.

        G' = Q_L^T G Q_R
        M <- beta1 M + (1 - beta1) G,   V <- beta2 V + (1 - beta2) G'^2
        U = Q_L (M'_hat / (sqrt(V_hat) + eps)) Q_R^T        (M' = Q_L^T M Q_R)
        W <- (1 - lr weight_decay) W - lr U
        L <- shampoo_beta L + (1 - shampoo_beta) G G^T,     R likewise with G^T G
        every precondition_frequency steps: Q_L <- qr(L Q_L), Q_R likewise

    The first step only computes the bases, by eigh, and does not change the weights (as in the
    authors' code). A side longer than max_precond_dim is not rotated; max_precond_dim = 0 rotates
    neither side and is Adam. While a statistic has low rank, the basis of its null space is
    arbitrary, and so is the update: two correct implementations then agree only if they start from
    the same basis.

    Deviations from the authors' soap.py: eps is added to the corrected sqrt(V_hat), as in line 8 of
    Algorithm 3 and in torch's Adam (theirs is added to sqrt(V), in effect eps / sqrt(1 - beta2^t));
    decay is applied before the update, as in torch's AdamW; a convolution is one matrix (out, in *
    kernel), their merge_dims, while their default rotates each of its four sides; bases are
    refreshed in the precision of the statistics (pytorch_optimizer: always float32). The options
    normalize_grads and precondition_1d are not implemented: vectors take AdamW, as in the paper.
    `shampoo_beta` is independent of betas; theirs is betas[1] by default (-1).

    Cost: 1 gradient evaluation per step, 2 + 2 (m^2 + n^2) / (m n) state tensors per matrix, matrix
    products of 3 m n (m + n) to rotate and m n (m + n) for the statistics, and every
    precondition_frequency steps a product and a QR per side, of order m^3 + n^3.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
    ) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.pair_of_fractions(betas=betas)
        checks.fraction(shampoo_beta=shampoo_beta)
        checks.at_least(1, precondition_frequency=precondition_frequency)
        checks.at_least(0, max_precond_dim=max_precond_dim)
        super().__init__(params, {
            "lr": lr, "betas": tuple(betas), "shampoo_beta": shampoo_beta, "eps": eps,
            "weight_decay": weight_decay, "precondition_frequency": precondition_frequency,
            "max_precond_dim": max_precond_dim})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        params, directions = adam_in_eigenbasis(
            self.state, params, group["betas"], group["eps"], group["shampoo_beta"],
            group["precondition_frequency"], group["max_precond_dim"])
        if params:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, u in zip(params, directions, strict=True):
            p.add_(u.reshape(p.shape), alpha=-group["lr"])
