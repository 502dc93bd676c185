"""Optimizer step cost on the grokking model's matrices, ours beside torch's, interleaved.

python -m exp.bench [--rounds N]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim import Muon as TorchMuon

from model import build_model
from optimizer import optimizer_class

WARM_UP = 3


def contestants(matrices: list[nn.Parameter]) -> dict[str, Optimizer]:
    """Every optimizer over the same matrices; torch's Muon takes only 2-D ones, so a stack of
    heads goes to it as one matrix a head."""
    flat = [nn.Parameter(part.detach().clone()) for p in matrices
            for part in (p if p.ndim == 3 else [p])]
    for p in flat:
        p.grad = torch.randn_like(p)
    return {
        "torch.optim.Muon": TorchMuon(flat),
        "muon": optimizer_class("muon")(matrices),
        "ars2_neo, base": optimizer_class("ars2_neo")(matrices, k=0),
        "rmsuon": optimizer_class("rmsuon")(matrices),
        "torch.optim.AdamW, fused": AdamW(matrices, fused=True),
    }


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Print the median step of each contestant and its ratio to torch.optim.Muon."""
    parser = argparse.ArgumentParser(prog="python -m exp.bench")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build_model({"name": "grokking_transformer"}, vocab_size=114).to(device)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    for p in matrices:
        p.grad = torch.randn_like(p)
    optimizers = contestants(matrices)

    def step(optimizer: Optimizer) -> None:
        optimizer.step(lambda: torch.zeros(()))  # the gradients are there already

    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for round_ in range(WARM_UP + rounds):
        for name, optimizer in optimizers.items():
            taken = milliseconds(lambda optimizer=optimizer: step(optimizer), device)
            if round_ >= WARM_UP:
                times[name].append(taken)
    reference = statistics.median(times["torch.optim.Muon"])
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__},"
          f" {rounds} rounds, grokking matrices {[tuple(p.shape) for p in matrices]}")
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"  {name:26} median {median:8.3f} ms  min {min(taken):8.3f}  max {max(taken):8.3f}"
              f"  torch.optim.Muon / this {reference / median:6.1f}x")


if __name__ == "__main__":
    main()
