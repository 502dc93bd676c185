"""Energy re-injection: scale the orthogonalized direction by the norm of the whitened momentum."""

from typing import Literal

import torch
from torch import Tensor

EnergyNorm = Literal["literal", "frobenius", "rms", "none"]
EnergyScope = Literal["matrix", "tensor"]


def with_energy(polar: Tensor, whitened: Tensor, norm: str, scope: str) -> Tensor:
    """Return `polar` O (stack, m, n) scaled by the energy E = ||whitened||_F of the same shape.

    norm: "literal" E * O, every singular value becomes E (paper 2.4 and the released code);
    "frobenius" E * O / ||O||_F, the update has the norm of Adam's; "rms" E * O / sqrt(min(m, n));
    "none" 0.2 sqrt(max(m, n)) * O, Moonlight's constant instead of the energy: a root mean square
    of 0.2 if O is orthogonal (Liu et al. 2025, arXiv 2502.16982).
    scope: one energy per "matrix" of a stack, or one for the whole "tensor" (as released).
    """
    if norm == "none":
        return 0.2 * max(polar.shape[-2:]) ** 0.5 * polar
    dims = (-2, -1) if scope == "matrix" else (-3, -2, -1)
    energy = torch.linalg.vector_norm(whitened, dim=dims, keepdim=True)
    if norm == "frobenius":
        # A zero direction also has zero energy: the floor only prevents 0 / 0.
        length = torch.linalg.vector_norm(polar, dim=dims, keepdim=True)
        energy = energy / length.clamp_min(torch.finfo(length.dtype).tiny ** 0.5)
    elif norm == "rms":
        energy = energy / min(polar.shape[-2:]) ** 0.5
    return energy * polar
