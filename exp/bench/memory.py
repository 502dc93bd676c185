"""Peak transient memory of a call: what is allocated at its worst moment and not kept."""

import gc
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Bytes allocated at the worst moment of one call, over those at its end.

    On the CPU what goes through torch's allocator, on CUDA what the caching allocator hands out.
    """
    gc.collect()  # what is garbage before must not be released, and counted, during the call
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    level = peak = 0
    # The profiler's own tables sum memory up by operator; when it was taken is in the raw events.
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak - level
