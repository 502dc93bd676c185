"""Device, precision, memory and seeds."""

import ctypes
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from exp.harness.errors import ConfigError

CGROUP = Path("/sys/fs/cgroup/memory.max")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def pick_device(name: str) -> torch.device:
    """Return the device called "auto" (CUDA if available), "cpu" or "cuda".

    Raises ConfigError for "cuda" without a CUDA device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device "cuda": torch finds no CUDA device; use --device cpu or auto')
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def autocast(device: torch.device, precision: str) -> Callable:
    """A context manager for forward passes: bfloat16 autocast for "bf16", nothing otherwise."""
    if precision != "bf16":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=torch.bfloat16)


def twice_differentiable(forward: Callable) -> Callable:
    """Return `forward`, a context manager for forward passes, with attention by torch's math
    backend, because the gradients of the fused kernels cannot be differentiated."""
    @contextmanager
    def context() -> Iterator[None]:
        with forward(), sdpa_kernel(SDPBackend.MATH):
            yield

    return context


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 (10 bits of mantissa) for the operands of CUDA's float32 matrix products
    and convolutions alike; torch's own defaults differ between the two."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def time_convolutions() -> None:
    """Make cuDNN time its algorithms on the first convolution of each shape and take the fastest.
    Another choice rounds differently; CUDA runs are equal up to rounding in any case."""
    torch.backends.cudnn.benchmark = True


def total_memory(device: torch.device) -> int:
    """Memory of the device in bytes; on the CPU the machine's, or a container's lower limit."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):
        return sys.maxsize
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP.read_text().strip() if CGROUP.exists() else ""
    return min(machine, int(limit)) if limit.isdigit() else machine


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: on CUDA that of tensors since `restart_peak_memory`, on the CPU that of
    the process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def restart_peak_memory(device: torch.device) -> None:
    """Reset the peak memory on CUDA; does nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def wait_for(device: torch.device) -> None:
    """Wait until all queued kernels have finished, for timing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step. Otherwise every large temporary is mapped
    again, with a page fault per 4 KiB: about ten percent of a step on a CPU."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            mallopt(option, value)


def seed_everything(seed: int) -> None:
    """Seed torch on all devices, numpy and Python's random."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
