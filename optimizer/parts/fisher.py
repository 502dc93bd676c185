"""Kronecker-factored Fisher matrix of a layer, F = A (x) G, and the natural gradient F^-1 g.

Martens & Grosse 2015, arXiv 1503.05671, sections 4.2 (factored Tikhonov damping) and 4.3.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from .kronecker import eigh
from .layers import Recorder

SMALLEST_EIGENVALUE = 1e-10  # eigenvalues up to this are set to zero, as in the reference code
SIDES = ("input", "output")


def update_factors(state: dict, weight: Tensor, recorder: Recorder, conv_norm: str, decay: float
                   ) -> None:
    """Update the factors A (in, in), "input_factor", and G (out, out), "output_factor", of a layer
    with the recorded passes, A <- decay A + (1 - decay) A_recorded, and clear the recorder.

    Both start as identities; `in` includes one column for a recorded bias."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    sizes = (weight[0].numel() + recorder.bias, len(weight))
    for side, size in zip(SIDES, sizes, strict=True):
        if f"{side}_factor" not in state:
            state[f"{side}_factor"] = torch.eye(size, dtype=dtype, device=weight.device)
    if recorder.rows:
        for side, factor in zip(SIDES, recorder.factors(conv_norm), strict=True):
            state[f"{side}_factor"].lerp_(factor, 1 - decay)
        recorder.reset()


def update_eigenvectors(states: Sequence[dict], dtype: torch.dtype) -> None:
    """Compute in `dtype` and store the eigenvalues and eigenvectors of both factors of each layer.

    Factors of one shape are decomposed in one call, so that a GPU waits once for each shape."""
    stacks: dict[tuple, list[tuple[dict, str]]] = {}
    for state, side in product(states, SIDES):
        factor = state[f"{side}_factor"]
        stacks.setdefault((factor.shape, factor.dtype, factor.device), []).append((state, side))
    for members in stacks.values():
        bases = eigenbasis(torch.stack([state[f"{side}_factor"] for state, side in members]), dtype)
        for (state, side), values, vectors in zip(members, *bases, strict=True):
            state[f"{side}_eigenvalues"] = values.clone()
            state[f"{side}_eigenvectors"] = vectors.clone()


def natural_gradient(state: dict, members: list[Tensor], damping: float, tikhonov: str
                     ) -> dict[Tensor, Tensor]:
    """Return the natural gradient P = F^-1 g of one layer as parameter -> its part, in its shape.

    members: the weight, and the bias if it is recorded. damping, tikhonov: see `damped`."""
    basis_in, basis_out = state["input_eigenvectors"], state["output_eigenvectors"]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in members]
    v = torch.cat([g.reshape(len(g), -1) for g in grads], 1).to(basis_in.dtype)
    rotated = basis_out.mT @ v @ basis_in
    denominator = damped(state["output_eigenvalues"], state["input_eigenvalues"], damping, tikhonov)
    rotated = torch.where(denominator == 0, 0, rotated / denominator)
    parts = (basis_out @ rotated @ basis_in.mT).split([g[0].numel() for g in grads], 1)
    return {p: part.reshape(p.shape) for p, part in zip(members, parts, strict=True)
            if p.grad is not None}


def eigenbasis(factors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (stack, n) and eigenvectors (stack, n, n) of symmetric matrices.

    Eigenvalues up to SMALLEST_EIGENVALUE become zero. A matrix with a NaN or infinite entry gives
    NaN, so that the run is recorded as diverged.
    """
    values, vectors = eigh(factors, torch.promote_types(factors.dtype, dtype))
    lost = torch.where(factors.isfinite().all(-1).all(-1), 0.0, torch.nan).to(factors)[:, None]
    return values * (values > SMALLEST_EIGENVALUE) + lost, vectors + lost[:, None]


def damped(output: Tensor, inputs: Tensor, damping: float, tikhonov: str) -> Tensor:
    """Return the eigenvalues (out, in) of G (x) A with damping.

    tikhonov: "exact" adds `damping` to each product of eigenvalues; otherwise sqrt(damping) is
    split between the factors by pi = sqrt(mean(inputs) / mean(output)), see KFAC."""
    if tikhonov == "exact":
        return torch.outer(output, inputs) + damping
    tiny = torch.finfo(inputs.dtype).tiny  # a factor may be zero
    pi = inputs.mean().clamp_min(tiny).sqrt() / output.mean().clamp_min(tiny).sqrt()
    return torch.outer(output + damping**0.5 / pi, inputs + damping**0.5 * pi)
