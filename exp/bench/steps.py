"""Cost of an optimizer step: ours, torch's and the libraries', on the same matrices."""

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim import Muon as TorchMuon

from exp.bench.memory import peak_bytes
from exp.bench.timing import interleaved, summary
from exp.harness.facts import has_bfloat16
from model import build_model
from optimizer import optimizer_class
from optimizer.parts.base import Closure
from optimizer.parts.state import state_per_weight, weight_bytes

REFERENCE = "muon"
OURS: dict[str, tuple[str, dict]] = {"muon": ("muon", {}), "ars2_neo, base": ("ars2_neo", {"k": 0})}
# Peers orthogonalize in bfloat16; where it is in hardware, ours is measured in both dtypes.
NARROW = {f"muon, {dtype}": ("muon", {"ns_dtype": dtype}) for dtype in ("float32", "bfloat16")}


def shapes() -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the matrices of the grokking model, of one layer of the 512-wide Qwen3, and one of
    each shape among the convolutions of ResNet-18's blocks, as matrices."""
    grokking = build_model({"name": "grokking_transformer"}, vocab_size=114)
    with torch.device("meta"):
        resnet = build_model({"name": "resnet18"}, num_classes=10)
    return {
        "grokking": [tuple(p.shape) for p in grokking.parameters() if p.ndim >= 2],
        "qwen3 layer": [*[(512, 512)] * 4, *[(2048, 512)] * 2, (512, 2048)],
        "resnet18": list(dict.fromkeys(tuple(p.flatten(1).shape) for name, p in
                                       resnet.named_parameters()
                                       if p.ndim == 4 and name.startswith("blocks"))),
    }


class KellerMuon(Optimizer):
    """Reference Muon: one matrix at a time, in float32, with fused multiply-adds."""

    def __init__(self, params: Iterable) -> None:
        super().__init__(params, {"lr": 0.02, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = keller(p.grad.lerp(buffer, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def keller(x: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration of one matrix as in Keller Jordan's code, in the dtype of `x`."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)
    return x.T if tall else x


def contestants(device: torch.device) -> dict[str, Callable[[list[nn.Parameter]], Optimizer]]:
    """Name -> constructor of an optimizer from a list of parameters. Left out are libraries that
    are not installed, ours under torch.compile if there is no compiler, and ours with other dtypes
    of its products if bfloat16 is emulated."""
    rules = OURS | (NARROW if has_bfloat16(device) else {})
    optimizers: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
        name: partial(_ours, *rule) for name, rule in rules.items()}
    if shutil.which("g++"):
        optimizers |= {f"{name}, compiled": partial(_ours, *rule, compiled=True)
                  for name, rule in OURS.items()}
    optimizers |= {
        "keller, float32": KellerMuon,
        "torch.optim.Muon": TorchMuon,
        "torch AdamW, fused": lambda matrices: AdamW(matrices, fused=True),
        "torch AdamW, foreach": lambda matrices: AdamW(matrices, foreach=True),
    }
    if find_spec("pytorch_optimizer"):
        from pytorch_optimizer import Muon as LibraryMuon

        for name, settings in {"plain": {"foreach": False}, "foreach": {"foreach": True},
                               "gram": {"ns_method": "gram_newton_schulz"}}.items():
            optimizers[f"pytorch_optimizer, {name}"] = partial(
                lambda settings, matrices: LibraryMuon(
                    [{"params": matrices, "use_muon": True}], **settings), settings)
    if find_spec("heavyball"):
        from heavyball import Muon as HeavyMuon

        optimizers["heavyball"] = HeavyMuon
    return optimizers


def measure(rounds: int, clock: str, device: torch.device) -> dict[str, dict]:
    """Per set of shapes: times, ratios to our Muon, state and transient memory over the weights'.
    """
    results = {}
    for name, sizes in shapes().items():
        optimizers = {key: make(_parameters(sizes, key, device))
                      for key, make in contestants(device).items()}
        steps = {key: stepper(optimizer, closure=key != "heavyball")
                 for key, optimizer in optimizers.items()}
        for step in steps.values():  # the first makes the state, and some compile
            step()
        extra = {key: peak_bytes(step, device) for key, step in steps.items()}
        rows = summary(interleaved(steps, rounds, clock), REFERENCE)
        for key, optimizer in optimizers.items():
            rows[key]["state_per_weight"] = state_per_weight(optimizer)
            rows[key]["extra_per_weight"] = extra[key] / weight_bytes(optimizer)
        results[name] = rows
    return results


def _ours(name: str, settings: dict, matrices: list[nn.Parameter], compiled: bool = False
          ) -> Optimizer:
    optimizer = optimizer_class(name)(matrices, **settings)
    if compiled:
        optimizer.step = torch.compile(optimizer.step)
    return optimizer


def stepper(optimizer: Optimizer, closure: bool) -> Callable[[], None]:
    """Return a function that takes one step with the present gradients. heavyball's step takes no
    closure and removes the gradients."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in weights]

    def step() -> None:
        for p, gradient in zip(weights, gradients, strict=True):
            p.grad = gradient
        if closure:
            optimizer.step(lambda: 0.0)
        else:
            optimizer.step()

    return step


def _parameters(sizes: list[tuple[int, ...]], contestant: str,
                device: torch.device) -> list[nn.Parameter]:
    """Random weights and gradients. Ours and AdamW take a stack of heads as one parameter, the
    others one parameter per head."""
    generator = torch.Generator().manual_seed(0)
    ours = contestant.startswith(tuple(OURS)) or "AdamW" in contestant
    params = []
    for size in sizes:
        pieces = [size] if ours or len(size) == 2 else [size[1:]] * size[0]
        for piece in pieces:
            p = nn.Parameter(torch.randn(piece, generator=generator).to(device))
            p.grad = torch.randn(piece, generator=generator).to(device)
            params.append(p)
    return params
