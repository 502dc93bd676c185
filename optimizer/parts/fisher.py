"""Kronecker-factored Fisher matrix of a layer, F = A (x) G, and the natural gradient F^-1 g.

Martens & Grosse 2015, arXiv 1503.05671, sections 4.2 (factored Tikhonov damping) and 4.3.
"""

import torch
from torch import Tensor

from .kronecker import eigh
from .layers import Recorder

SMALLEST_EIGENVALUE = 1e-10  # eigenvalues up to this are set to zero, as in the reference code
SIDES = ("input", "output")


def update_factors(state: dict, recorder: Recorder, conv_norm: str, decay: float) -> None:
    """Update the factors A (in, in), "input_factor", and G (out, out), "output_factor", with the
    recorded passes, A <- decay A + (1 - decay) A_recorded, and clear the recorder.

    Both start as identities; `in` includes one column for a recorded bias."""
    factors = recorder.factors(conv_norm)
    for side, factor in zip(SIDES, factors, strict=True):
        if f"{side}_factor" not in state:
            state[f"{side}_factor"] = torch.eye(len(factor)).to(factor)
        state[f"{side}_factor"].lerp_(factor, 1 - decay)
    recorder.reset()


def identity_factors(state: dict, weight: Tensor, bias: bool) -> None:
    """Set both factors of a layer to identities, their value before the first pass."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    sizes = (weight[0].numel() + bias, len(weight))
    for side, size in zip(SIDES, sizes, strict=True):
        state[f"{side}_factor"] = torch.eye(size, dtype=dtype, device=weight.device)


def update_eigenvectors(state: dict) -> None:
    """Compute and store the eigenvalues and eigenvectors of both factors."""
    for side in SIDES:
        values, vectors = eigenbasis(state[f"{side}_factor"])
        state[f"{side}_eigenvalues"], state[f"{side}_eigenvectors"] = values, vectors


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


def eigenbasis(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (n,) and eigenvectors (n, n) of a symmetric matrix.

    Eigenvalues up to SMALLEST_EIGENVALUE become zero. A matrix with a NaN or infinite entry gives
    NaN, so that the run is recorded as diverged.
    """
    if not factor.isfinite().all():
        return factor.diagonal() * torch.nan, factor * torch.nan
    values, vectors = eigh(factor)
    return values * (values > SMALLEST_EIGENVALUE), vectors


def damped(output: Tensor, inputs: Tensor, damping: float, tikhonov: str) -> Tensor:
    """Return the eigenvalues (out, in) of G (x) A with damping.

    tikhonov: "exact" adds `damping` to each product of eigenvalues; otherwise sqrt(damping) is
    split between the factors by pi = sqrt(mean(inputs) / mean(output)), see the class docstring."""
    if tikhonov == "exact":
        return torch.outer(output, inputs) + damping
    tiny = torch.finfo(inputs.dtype).tiny  # a factor may be zero
    pi = inputs.mean().clamp_min(tiny).sqrt() / output.mean().clamp_min(tiny).sqrt()
    return torch.outer(output + damping**0.5 / pi, inputs + damping**0.5 * pi)
