"""QK-Clip, Kimi Team 2025, arXiv 2507.20534 (MuonClip): shrink attention heads with large logits.

Derivation: Su 2025, "QK-Clip" (kexue.fm 11126).
"""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from .parts import checks
from .parts.wrapper import Wrapper

__all__ = ["QKClip"]

SEARCH_SPACE = {"tau": (10.0, 200.0, "log")}
COST = {"gradient_evaluations": 1, "state_tensors": 0}
TESTED_AGAINST = "by hand"


class AttentionLayer(Protocol):
    """The interface QKClip requires of an attention layer, whose projections have no bias."""

    W_Q: Tensor  # (heads, d_head, d_model)
    W_K: Tensor  # (key heads, d_head, d_model)
    max_logits: Tensor | None  # (heads,), running maximum updated by training passes


class QKClip(Wrapper):
    """Rescales W_Q and W_K of each attention head with large logits after each step of `base`:

        gamma = min(1, tau / S)
        W_Q <- sqrt(gamma) W_Q,   W_K <- sqrt(gamma) W_K

    where S is the head's largest logit q.k / sqrt(d_head) (signed, before the softmax, causal
    entries only) in the forward passes of the step. If query heads share a key head, only
    W_Q <- gamma W_Q. All logits of the head shrink by gamma. Heads with S <= tau, gradients and the
    state of `base` are not changed.

    `model` must have a method `attention_layers()` that returns a list of `AttentionLayer`s. Their
    max_logits is None, which records nothing, until a QKClip is built. Models with QK-norm (Qwen3)
    have no such method, since their logits do not scale with W_Q.

    With gradient accumulation and sharpness-aware passes S is the maximum over all passes, and with
    torch.distributed over all processes.

    Cost: no additional gradient evaluation, no state; a maximum over the logits of each pass.
    Raises ValueError for an invalid argument or a model without `attention_layers`.
    """

    def __init__(self, base: Optimizer, model: nn.Module, tau: float = 100.0) -> None:
        checks.non_negative(tau=tau)
        attention_layers = getattr(model, "attention_layers", None)
        if attention_layers is None:
            raise ValueError(
                f"{type(model).__name__} does not expose its attention logits: QK-Clip needs a "
                "model with attention_layers(); one with QK-norm has none, because its logits do "
                "not depend on the scale of the query and key weights")
        super().__init__(base)
        self.tau = tau
        self.layers: list[AttentionLayer] = attention_layers()
        self.largest, self.clipped = torch.zeros(()), torch.zeros(())
        self._record_anew()

    @property
    def diagnostics(self) -> dict[str, float]:
        """The largest logit of the last step, the number of clipped heads, and those of `base`."""
        return {**super().diagnostics, "max_logit": float(self.largest),
                "clipped_heads": float(self.clipped)}

    @torch.compiler.disable  # a compiled graph would lose the attributes set here
    def after_step(self) -> None:
        """Rescale each head by its largest logit of the step and reset the recorded maxima."""
        recorded = [layer.max_logits for layer in self.layers if layer.max_logits is not None]
        for layer, largest in zip(self.layers, recorded, strict=True):
            if dist.is_initialized():
                dist.all_reduce(largest, dist.ReduceOp.MAX)
            self._clip(layer, largest)
        logits = torch.cat(recorded)
        self.largest, self.clipped = logits.max(), (logits > self.tau).sum()
        self._record_anew()

    def _clip(self, layer: AttentionLayer, s: Tensor) -> None:
        gamma = torch.where(s > self.tau, self.tau / s, 1)[:, None, None]
        shared = len(layer.W_K) < len(layer.W_Q)
        layer.W_Q.mul_(gamma if shared else gamma.sqrt())
        if not shared:
            layer.W_K.mul_(gamma.sqrt())

    def _record_anew(self) -> None:
        for layer in self.layers:
            layer.max_logits = torch.full_like(layer.W_Q[:, 0, 0], -torch.inf, dtype=torch.float32,
                                               requires_grad=False)
