"""SOAP-Muon, Vyas et al. 2025, "Improving SOAP using Iterative Whitening and Muon".

nikhilvyas.github.io/SOAP_Muon.pdf; formula of the authors' code (nikhilvyas/SOAP_MUON, v1.py).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from .muon import Scale, step_scale
from .parts import checks
from .parts.kronecker import adam_in_eigenbasis
from .parts.matrix import MatrixOptimizer
from .parts.polar import NsDtype, Orthogonalizer, msign, polar_options

__all__ = ["SOAPMuon"]

SEARCH_SPACE = {
    "lr": (1e-3, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.95], [0.95, 0.95], [0.95, 0.98]],
    "precondition_frequency": [1, 10, 100],
    "adamw.lr": (1e-4, 1e-2, "log"),
}
COST = {"gradient_evaluations": 1, "state_tensors": 6}  # two like the matrix, four square
TESTED_AGAINST = "by hand, plain numpy, Muon"


class SOAPMuon(MatrixOptimizer):
    """Orthogonalizes SOAP's direction: whitening per entry in the eigenbasis, then msign.

        U = Q_L (M'_hat / (sqrt(V_hat) + eps)) Q_R^T        (all as in SOAP)
        W <- (1 - lr weight_decay) W - lr c(m, n) msign(U)        (c as in Muon)

    Since msign(Q_L N Q_R^T) = Q_L msign(N) Q_R^T, the rotation alone changes nothing; only the
    division by sqrt(V) in the eigenbasis does. In the limit of large eps (constant denominator)
    this is Muon; without rotation (max_precond_dim=0) it is Muon^2. In the eigenbasis a direction
    is damped by the gradient's past magnitude along it, whatever the momentum along it is.

    As in SOAP, the first step only computes the bases. nesterov: the momentum is beta1 M + (1 -
    beta1) G, as in modded-nanogpt's SOAP-Muon (pull request 278); the authors' v1 has no Nesterov.

    Caution: along a direction without any gradient, U is rounding error divided by rounding error,
    and msign makes it as large as the others, while Muon keeps it small. In float32 an eps of a
    thousandth of the gradient's entries keeps it below a hundredth of them; the authors' 1e-15
    does not.

    Deviations: the authors multiply lr by Adam's sqrt(1 - beta2^t) / (1 - beta1^t), although msign
    is invariant to the bias it corrects; this is omitted. v1 uses 10 + 2 Newton-Schulz steps and an
    update of RMS 1; scale="moonlight" gives 0.2. v2 has Keller's scale and takes the square root of
    the entries in the basis after msign, so the update is no polar factor; it is not implemented.

    Cost: 1 gradient evaluation per step; state and products of SOAP plus Muon's Newton-Schulz.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        betas: tuple[float, float] = (0.95, 0.98),
        shampoo_beta: float = 0.98,
        nesterov: bool = False,
        eps: float = 1e-15,
        weight_decay: float = 0.0,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        ns_steps: int = 5,
        scale: Scale = "keller",
        orthogonalizer: Orthogonalizer = "keller",
        ns_dtype: NsDtype = "auto",
    ) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.pair_of_fractions(betas=betas)
        checks.fraction(shampoo_beta=shampoo_beta)
        checks.at_least(1, precondition_frequency=precondition_frequency)
        checks.at_least(0, max_precond_dim=max_precond_dim)
        checks.choice(Scale, scale=scale)
        super().__init__(params, {
            "lr": lr, "betas": tuple(betas), "shampoo_beta": shampoo_beta, "nesterov": nesterov,
            "eps": eps, "weight_decay": weight_decay,
            "precondition_frequency": precondition_frequency, "max_precond_dim": max_precond_dim,
            "scale": scale, **polar_options(ns_steps, orthogonalizer, ns_dtype)})

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the update of the class docstring in place."""
        params, directions = adam_in_eigenbasis(
            self.state, params, group["betas"], group["eps"], group["shampoo_beta"],
            group["precondition_frequency"], group["max_precond_dim"], group["nesterov"])
        polar = msign(directions, group)
        if params:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, o in zip(params, polar, strict=True):
            c = step_scale(p.shape, group["scale"], "flattened")
            p.add_(o.reshape(p.shape), alpha=-group["lr"] * c)
