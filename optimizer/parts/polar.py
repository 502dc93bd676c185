"""Orthogonalization: the polar factor msign(X) = U V^T of a matrix X = U S V^T, by Newton-Schulz.

An odd polynomial iteration on X / ||X||_F pushes every singular value towards 1 with matrix
products alone: A = X X^T, X <- a X + (b A + c A^2) X (Jordan et al. 2024, "Muon"). Matrices of
one shape, and of its transpose, are iterated as one batch.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from . import checks

Orthogonalizer = Literal[
    "keller", "youjiacheng", "polar_express", "polar_express_5", "taylor", "cubic", "svd"
]
OptionalOrthogonalizer = Literal[Orthogonalizer, "none"]
NsDtype = Literal["auto", "float32", "bfloat16"]


def _with_safety(rows: Sequence[tuple[float, float, float]], safety: float):
    """Shrink all rows but the last by `safety`, so that rounding cannot push a singular value out
    of the range in which the next polynomial converges."""
    shrunk = [(a / safety, b / safety**3, c / safety**5) for a, b, c in rows[:-1]]
    return (*shrunk, rows[-1])


# name: (divisor of X besides its norm, coefficients (a, b, c) per step; the last row repeats).
COEFFICIENTS = {
    # Keller Jordan, Muon: steepest at 0; does not converge, singular values end in [0.68, 1.20].
    "keller": (1.0, ((3.4445, -4.7750, 2.0315),)),
    # YouJiacheng (modded-nanogpt): the most accurate of the 5-step sets for well-conditioned X.
    "youjiacheng": (
        1.0,
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ),
    ),
    # Polar Express, Amsel et al. 2025, arXiv 2505.16932, Algorithm 1 with l = 1e-3, safety 1.01.
    "polar_express": (
        1.01,
        _with_safety(
            (
                (8.28721201814563, -23.595886519098837, 17.300387312530933),
                (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
                (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
                (3.3184196573706015, -2.488488024314874, 0.51004894012372),
                (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
                (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
                (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
                (1.875, -1.25, 0.375),
            ),
            1.01,
        ),
    ),
    # Polar Express for exactly five steps, safety 2e-2 included (modded-nanogpt, nanochat).
    "polar_express_5": (
        1.02,
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
    ),
    # Taylor polynomials of x (x^2)^(-1/2) about 1: converge to 1, slowly for small singular values.
    "taylor": (1.0, ((15 / 8, -10 / 8, 3 / 8),)),
    "cubic": (1.0, ((1.5, -0.5, 0.0),)),
}

# Chosen by measurement, see outputs/paper/bench: rows per block of a symmetric product, ratio n / m
# from which `_gram_steps` is faster, its steps per call, elements from which batching costs time.
STRIP, LONG, GRAM_STEPS, LARGE = 128, 1.5, 5, 2**17


def as_matrices(tensor: Tensor) -> Tensor:
    """View `tensor` as (stack, m, n): 2-D (m, n) -> (1, m, n); 3-D is unchanged; a convolution
    (out, in, *kernel) -> (1, out, in * kernel size)."""
    if tensor.ndim == 3:
        return tensor
    return tensor.reshape(1, tensor.shape[0], -1)


def newton_schulz(
    matrices: Tensor, steps: int = 5, coefficients: str = "keller",
    dtype: torch.dtype | None = None, floor: float = 0.0,
) -> Tensor:
    """Approximate msign of each matrix of a stack (stack, m, n); a zero matrix stays zero.

    The matrix is normalized in its own precision and then iterated in `dtype` (default: the same),
    so a norm far from 1 costs no accuracy. If its squares underflow (entries below 1e-19 in
    float32) the result shrinks towards zero, and likewise if its norm is much smaller than `floor`,
    which is added to the norm (1e-7 in ARS's code). Cheapest for m <= n: the Gram matrix is (m, m).
    Wide float32 matrices on the CPU use `_gram_steps`; in bfloat16 that would double the error on a
    Gaussian matrix, even with two steps per call.
    """
    divisor, rows = COEFFICIENTS[coefficients]
    norms = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    tiny = torch.finfo(norms.dtype).tiny ** 0.5
    norms = norms + floor if floor else norms
    x = (matrices / (norms * divisor).clamp_min_(tiny)).to(dtype or matrices.dtype)
    if torch.compiler.is_compiling():  # a compiled graph must not write into strided buffers
        x = x.contiguous()
    rows = [rows[min(step, len(rows) - 1)] for step in range(steps)]
    m, n = x.shape[-2:]
    if x.device.type == "cpu" and x.dtype == torch.float32 and n >= LONG * m:
        for start in range(0, steps, GRAM_STEPS):
            x = _gram_steps(x, rows[start:start + GRAM_STEPS])
        return x
    return _direct_steps(x, rows)


def _direct_steps(x: Tensor, rows: Sequence[tuple[float, float, float]]) -> Tensor:
    """Iterate A = X X^T, X <- a X + (b A + c A^2) X, one step per row of coefficients.

    x (stack, m, n) is overwritten."""
    gram, polynomial = _square(x), _square(x)
    y = torch.empty_like(x)
    for a, b, c in rows:
        _symmetric_product(x, x.mT, gram)
        # a X is added separately: with a on the diagonal the sum would be rounded to bfloat16.
        torch.baddbmm(x, _polynomial(gram, (0.0, b, c), polynomial), x, beta=a, out=y)
        x, y = y, x
    return x


def _gram_steps(x: Tensor, rows: Sequence[tuple[float, float, float]]) -> Tensor:
    """Compute the same steps with (m, m) products only, except for the first and the last product.

    With A = X X^T and P = a I + b A + c A^2 a step is X <- P X, so A <- P A P. All these matrices
    are polynomials of the first A. They are symmetric and commute, so the product Q of all P can be
    accumulated in any order, and finally X <- Q X. A holds squares: in float32 its rounding errors
    exceed the squares of singular values below 3e-4 of the largest. These errors, negative
    eigenvalues among them, grow by a^2 per step, which limits a call to GRAM_STEPS steps.
    """
    gram, polynomial, product, spare = (_square(x) for _ in range(4))
    _symmetric_product(x, x.mT, gram)
    for step, row in enumerate(rows):
        _polynomial(gram, row, polynomial)
        if step < len(rows) - 1:
            _symmetric_product(polynomial, gram, spare)
            _symmetric_product(spare, polynomial, gram)
        if step == 0:
            product, polynomial = polynomial, product
        else:
            # A full product: in the null space, which is rounding error, P and Q do not commute.
            torch.bmm(polynomial, product, out=spare)
            product, spare = spare, product
    return product @ x


def _square(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-2])


def _polynomial(gram: Tensor, row: tuple[float, float, float], out: Tensor) -> Tensor:
    """Write a I + b A + c A^2 of each matrix of the stack to `out` and return it."""
    a, b, c = row
    if c and _is_split(gram):
        _symmetric_product(gram, gram, out)
        out.mul_(c).add_(gram, alpha=b)
    elif c:
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=out)
    else:
        torch.mul(gram, b, out=out)
    if a:
        out.diagonal(dim1=-2, dim2=-1).add_(a)
    return out


def _symmetric_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write left @ right, which must be symmetric, to `out` (stack, m, m). Large products on the
    CPU are computed in block rows from the diagonal on and mirrored: up to half the operations."""
    if not _is_split(out):
        torch.bmm(left, right, out=out)
        return
    for start in range(0, out.shape[-1], STRIP):
        rows, rest = slice(start, start + STRIP), slice(start + STRIP, None)
        torch.bmm(left[:, rows], right[:, :, start:], out=out[:, rows, start:])
        out[:, rest, rows] = out[:, rows, rest].mT


def _is_split(out: Tensor) -> bool:
    # In bfloat16 whole products are faster: 0.73 of float32's time, block rows 0.94.
    return (out.device.type == "cpu" and out.shape[-1] > STRIP and out.dtype != torch.bfloat16)


def exact_polar(matrices: Tensor) -> Tensor:
    """Return msign of (stack, m, n) by SVD; singular values <= max(m, n) * eps * s_max are dropped
    as zero."""
    # CUDA's default driver is the fastest and least accurate of the three.
    driver = "gesvd" if matrices.is_cuda else None
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False, driver=driver)
    threshold = max(matrices.shape[-2:]) * torch.finfo(s.dtype).eps * s[..., :1]
    return (u * (s > threshold).to(u.dtype).unsqueeze(-2)) @ vh


def polar_options(ns_steps: int, orthogonalizer: str, ns_dtype: str,
                  accepted: Any = Orthogonalizer) -> dict:
    """Return the group options that `msign` reads. Raises ValueError for an invalid value."""
    checks.iterations(ns_steps=ns_steps)
    checks.choice(accepted, orthogonalizer=orthogonalizer)
    checks.choice(NsDtype, ns_dtype=ns_dtype)
    return {"ns_steps": ns_steps, "orthogonalizer": orthogonalizer, "ns_dtype": ns_dtype}


def msign(tensors: Sequence[Tensor], group: dict) -> list[Tensor]:
    """Call `orthogonalize` with the options of `group`."""
    return orthogonalize(tensors, group["orthogonalizer"], group["ns_steps"], group["ns_dtype"])


def product_dtype(tensor: Tensor, ns_dtype: str) -> torch.dtype:
    """Return the dtype of the matrix products that orthogonalize `tensor`.

    "auto": float64 for float64 tensors, otherwise bfloat16 on CUDA and float32 on the CPU. This
    includes CPUs with bfloat16 hardware (`torch.cpu.get_capabilities()`: "avx512_bf16",
    "amx_bf16"): there bfloat16 takes 0.73 of the time on 512-wide layers but 1.3 on small matrices
    (AVX-512), and float32 gives the same weights, to rounding, on every processor.
    """
    if ns_dtype != "auto":
        return getattr(torch, ns_dtype)
    if tensor.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if tensor.is_cuda else torch.float32


def orthogonalize(
    tensors: Sequence[Tensor], orthogonalizer: str = "keller", steps: int = 5,
    ns_dtype: str = "auto",
) -> list[Tensor]:
    """Return msign of each tensor as one stack (stack, m, n), see `as_matrices`, in its dtype.

    Norms are computed in float32 or wider, products in `product_dtype`. "svd" ignores ns_dtype and
    is computed in float32 or wider.
    """
    stacks = [as_matrices(tensor) for tensor in tensors]
    tall = [stack.shape[-2] > stack.shape[-1] for stack in stacks]
    wide = [stack.mT if t else stack for stack, t in zip(stacks, tall, strict=True)]
    results: dict[int, Tensor] = {}
    for indices in _batches(wide):
        members = [wide[index] for index in indices]
        batch = torch.cat(members) if len(members) > 1 else members[0]
        polar = _polar(batch, orthogonalizer, steps, ns_dtype)
        parts = polar.to(members[0].dtype).split([member.shape[0] for member in members])
        for index, part in zip(indices, parts, strict=True):
            results[index] = part.mT if tall[index] else part
    return [results[index] for index in range(len(wide))]


def _batches(stacks: Sequence[Tensor]) -> list[list[int]]:
    """Group indices into batches by matrix shape, dtype and device. Large matrices on the CPU are
    batches of their own: batching them gains nothing and exceeds the cache."""
    buckets = defaultdict(list)
    for index, stack in enumerate(stacks):
        alone = stack.device.type == "cpu" and stack[0].numel() >= LARGE
        buckets[stack.shape[-2:], stack.dtype, stack.device, index if alone else None].append(index)
    return list(buckets.values())


def _polar(batch: Tensor, orthogonalizer: str, steps: int, ns_dtype: str) -> Tensor:
    batch = batch if batch.dtype == torch.float64 else batch.float()
    if orthogonalizer == "svd":
        return exact_polar(batch)
    return newton_schulz(batch, steps, orthogonalizer, product_dtype(batch, ns_dtype))
