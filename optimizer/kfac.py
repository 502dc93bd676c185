"""K-FAC, Martens & Grosse 2015, arXiv 1503.05671: Kronecker-factored natural gradient per layer.

Convolutions: Grosse & Martens 2016, arXiv 1602.01407. KL clip: Ba et al. 2017 (ICLR).
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from .parts import checks, fisher
from .parts.base import grad_of
from .parts.layers import LayerOptimizer

__all__ = ["KFAC"]

RECIPE = 2  # eigendecompositions in float32

SEARCH_SPACE = {
    "lr": (1e-4, 1e-1, "log"),
    "damping": (1e-5, 1e-1, "log"),
    "kl_clip": (1e-4, 1e-2, "log"),
    "weight_decay": (1e-5, 1e-2, "log"),
    "adamw.lr": (1e-4, 1e-2, "log"),
}
# Momentum, and two factors with their eigenvectors and eigenvalues.
COST = {"gradient_evaluations": 1, "state_tensors": 7}
TESTED_AGAINST = "by hand, exact natural gradient, plain numpy"

Tikhonov = Literal["exact", "factored"]
ConvNorm = Literal["kfc", "kfac_pytorch"]


class KFAC(LayerOptimizer):
    """Natural gradient with the Fisher matrix of each Linear and Conv2d approximated as A (x) G.

        A <- stat_decay A + (1 - stat_decay) mean of a a^T    a (in [+ 1]): inputs, 1 for the bias
        G <- stat_decay G + (1 - stat_decay) mean of d d^T    d (out): gradient of a sample's loss
        V = [dW | db] (out, in [+ 1]);   A = Qa diag(da) Qa^T,   G = Qg diag(dg) Qg^T
        P = Qg ((Qg^T V Qa) / (dg da^T + damping)) Qa^T
        nu = min(1, sqrt(kl_clip / sum of lr^2 <P, V>))       (sum over all layers)
        M <- momentum M + nu P + weight_decay W,   W <- W - lr M

    Hooks on `model`, which holds the parameters, record a and d every `factor_interval` steps
    (TCov); eigenvectors are computed every `inverse_interval` steps (TInv). Eigenvalues <= 1e-10
    are set to zero; damping 0 gives the pseudoinverse, an infinite kl_clip disables the clip.
    tikhonov="factored": denominator (dg + sqrt(damping) / pi) (da + pi sqrt(damping))^T, with
    pi^2 = (tr A / dim A) / (tr G / dim G).

    The matrix track has the weight and bias of each Linear and Conv2d whose weight is routed to it;
    all other parameters take AdamW. LayerOptimizer in parts/layers.py defines which layers count,
    Recorder there which passes, and `conv_norm`. The loss must be a mean over samples: images, or
    for a Linear all rows of its input (tokens). d is computed with the true labels, which makes
    this the empirical Fisher.

    Deviations from alecwangcq/KFAC-Pytorch: weight_decay applies from the first step on (theirs:
    after 20 TCov), the other parameters take AdamW (theirs: the same SGD), `p.grad` is not changed.

    Cost: 1 gradient evaluation per step; momentum, and per side of a layer a factor, eigenvectors
    and eigenvalues; two eigendecompositions per layer every `inverse_interval` steps, in float32
    (float64 for float64 parameters, or for damping 0), one call per shape.
    Raises ValueError for an invalid argument, a sparse gradient or a complex parameter, and for a
    layer with a gradient but no recorded pass.
    """

    def __init__(
        self,
        params: Iterable,
        model: nn.Module,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        stat_decay: float = 0.95,
        damping: float = 1e-3,
        kl_clip: float = 1e-3,
        factor_interval: int = 10,
        inverse_interval: int = 100,
        tikhonov: Tikhonov = "exact",
        conv_norm: ConvNorm = "kfc",
    ) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay, damping=damping, kl_clip=kl_clip)
        checks.fraction(momentum=momentum, stat_decay=stat_decay)
        checks.at_least(1, factor_interval=factor_interval, inverse_interval=inverse_interval)
        checks.choice(Tikhonov, tikhonov=tikhonov)
        checks.choice(ConvNorm, conv_norm=conv_norm)
        self.stat_decay, self.kl_clip, self.conv_norm = stat_decay, kl_clip, conv_norm
        self.factor_interval, self.inverse_interval = factor_interval, inverse_interval
        self.updates: dict[Tensor, Tensor] = {}
        self.kl_scale = torch.ones(())
        super().__init__(params, model, {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "damping": damping,
            "tikhonov": tikhonov})
        self.keep_scalars(steps=0)

    @property
    def diagnostics(self) -> dict[str, float]:
        """nu of the last step, number of layers on the matrix track, AdamW's share of elements."""
        sizes = {track: sum(p.numel() for group in self.param_groups if group["track"] == track
                            for p in group["params"]) for track in ("matrix", "adamw")}
        return {"kl_scale": float(self.kl_scale), "layers": float(len(self.recorders)),
                "adamw_share": sizes["adamw"] / sum(sizes.values())}

    @torch.compiler.disable  # a compiled graph would lose self.updates
    def update(self) -> None:
        """Apply the gradients in `p.grad`: K-FAC on the matrix track, then AdamW."""
        for group in self.param_groups:
            layers = [p for p in self.with_gradient(group) if p in self.recorders]
            self._update_statistics(layers, group)
            for p in layers:
                bias = self.layers[p].bias if self.recorders[p].bias else None
                self.updates |= fisher.natural_gradient(
                    self.state[p], [p] if bias is None else [p, bias], group["damping"],
                    group["tikhonov"])
        if self.updates:
            self._clip_updates()
        super().update()
        self.updates = {}
        self.scalars["steps"] += 1
        self.record(self.scalars["steps"] % self.factor_interval == 0)

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Apply the last line of the class docstring's formulas in place."""
        params = [p for p in params if p in self.updates]
        if not params:  # a group of biases whose weights have no gradient
            return
        buffers = self.buffers(params, "momentum_buffer")
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, [self.updates[p] for p in params])
        torch._foreach_add_(buffers, params, alpha=group["weight_decay"])
        torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def _update_statistics(self, weights: list[Tensor], group: dict) -> None:
        """Update the layers' factors from their recorded passes, and the eigenvectors if due, in
        float64 without damping: then the null space has an effect, which float32 does not resolve.

        Raises ValueError for a layer with a gradient but no recorded pass."""
        for weight in weights:
            state, recorder = self.state[weight], self.recorders[weight]
            if not recorder.rows and "input_factor" not in state and grad_of(weight).any():
                raise ValueError(
                    f"{self.layers[weight]} has a gradient, but KFAC recorded no training pass of "
                    "it: call the module itself, in training mode, or put its weight on track "
                    '"adamw"')
            fisher.update_factors(state, weight, recorder, self.conv_norm, self.stat_decay)
        due = self.scalars["steps"] % self.inverse_interval == 0
        states = [self.state[p] for p in weights if due or "input_eigenvalues" not in self.state[p]]
        if states:
            fisher.update_eigenvectors(states, torch.float32 if group["damping"] else torch.float64)

    def _clip_updates(self) -> None:
        total = sum(group["lr"] ** 2 * (self.updates[p] * p.grad).sum()
                    for group in self.param_groups for p in group["params"] if p in self.updates)
        tiny = torch.finfo(total.dtype).tiny  # all gradients may be zero
        self.kl_scale = (self.kl_clip / total.clamp_min(tiny)).sqrt().clamp_max(1.0)
        torch._foreach_mul_(list(self.updates.values()), self.kl_scale)

    def after_loading(self) -> None:
        """Schedule the recording by the restored step count."""
        super().after_loading()
        self.record(self.scalars["steps"] % self.factor_interval == 0)
