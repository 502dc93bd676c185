"""Orthogonalization: time, share of the measured matmul peak, distance from the exact polar."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz as torch_polar
from torch.utils.flop_counter import FlopCounterMode

from exp.bench.steps import keller
from exp.bench.timing import interleaved, summary
from exp.harness.facts import has_bfloat16
from optimizer.parts.polar import COEFFICIENTS, exact_polar, orthogonalize

REFERENCE, PEER = "keller, float32", "torch, bfloat16"
IN_FLOAT32 = (REFERENCE, "svd")  # on CUDA too, where the others take bfloat16
PEAK_SIZE = {"cpu": 1024, "cuda": 8192}  # large enough that launch time is negligible
EMULATED = 128  # rows; beyond, emulated bfloat16 on a CPU takes seconds
SIZES = [(128, 128), (128, 512), (512, 512), (512, 2048)]


def inputs(m: int, n: int, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield named float64 matrices (m, n): Gaussian, whitened (signs), condition 1e6, half the
    rank, rank 1."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(m, n, generator=generator, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(gaussian, full_matrices=False)
    yield "gaussian", gaussian
    low = torch.randn(m, 2, generator=generator, dtype=torch.float64) @ gaussian[:2]
    yield "whitened", (gaussian + low).sign()
    yield "condition 1e6", u * torch.logspace(0, -6, m, dtype=torch.float64) @ vh
    yield "half the rank", u[:, : m // 2] @ vh[: m // 2]
    yield "rank one", u[:, :1] @ vh[:1]


def methods(m: int, device: torch.device) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> function that orthogonalizes one float32 matrix of m rows, in five iterations."""
    ours = {f"ours, {name}": lambda x, name=name: orthogonalize([x], name)[0][0]
            for name in COEFFICIENTS}
    every = {**ours, "keller, float32": keller, "svd": lambda x: exact_polar(x[None])[0]}
    if device.type != "cpu" or m <= EMULATED:
        coefficients = (3.4445, -4.7750, 2.0315)
        every[PEER] = lambda x: torch_polar(x, coefficients, 5, 1e-7)
    return every


def peak(device: torch.device, clock: str, dtype: torch.dtype) -> float:
    """GFLOP/s of a square product of size PEAK_SIZE, the best of 15 rounds."""
    size = PEAK_SIZE[device.type]
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    rounds = interleaved({"product": lambda: a @ b}, 15, clock)["product"]
    return 2 * size**3 / min(seconds for seconds in rounds if seconds is not None) / 1e9


def measure(rounds: int, clock: str, device: torch.device) -> dict:
    """Peak rates of the dtypes that the device has in hardware; per size and method: dtype, time,
    ratio to REFERENCE, GFLOP/s, errors."""
    dtypes = (torch.float32, torch.bfloat16)[:1 + has_bfloat16(device)]
    results: dict = {"peak_size": PEAK_SIZE[device.type], "sizes": {}, "peaks": {
        str(dtype).removeprefix("torch."): peak(device, clock, dtype) for dtype in dtypes}}
    for m, n in SIZES:
        matrices = {name: x.to(device) for name, x in inputs(m, n)}
        exact = {name: exact_polar(x[None])[0] for name, x in matrices.items()}
        gaussian = matrices["gaussian"].float()
        functions = methods(m, device)
        calls = {name: partial(method, gaussian) for name, method in functions.items()}
        rows = summary(interleaved(calls, rounds, clock), REFERENCE)
        for name, method in functions.items():
            with FlopCounterMode(display=False) as counter:
                method(gaussian)
            rows[name]["gflops"] = counter.get_total_flops() / (1e6 * rows[name]["ms"])
            narrow = name == PEER or device.type == "cuda" and name not in IN_FLOAT32
            rows[name]["dtype"] = "bfloat16" if narrow else "float32"
            rows[name]["error"] = {key: distance(method(x.float()), exact[key])
                                   for key, x in matrices.items()}
        results["sizes"][f"{m} x {n}"] = rows
    return results


def distance(result: Tensor, exact: Tensor) -> float:
    """||result - msign(x)||_F / ||msign(x)||_F, `exact` = msign(x) by SVD in float64."""
    return float((result.double() - exact).norm() / exact.norm())
