"""Peak transient memory of a call: allocated at its peak and freed before its end."""

import gc
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Bytes allocated at the peak of one call, beyond those allocated at its end.

    On the CPU memory of torch's allocator, on CUDA of the caching allocator.
    """
    gc.collect()  # garbage must not be freed, and counted, during the call
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    level = peak = 0
    # The profiler's tables sum memory per operator; only its raw events are in order of time.
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak - level
