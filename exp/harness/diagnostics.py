"""Instruments: spectra, updates, alignment and sharpness, measured at regular steps.

Names in metrics.jsonl: "<instrument>/<parameter>/<tensor>/<measure>"; values are means over an
epoch's measurements. Off by default, at no cost; their time does not count as training time.
"""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exp.harness.config import Instrument
from exp.harness.device import wait_for
from exp.harness.objective import Objective
from optimizer.parts.polar import as_matrices
from optimizer.parts.roles import roles_of
from optimizer.qk_clip import AttentionLayer


class Instruments:
    """Hooks on `optimizer.step` that measure every `every`-th step; `take` returns the means.

        spectrum   of gradient, Adam's direction and update of each hidden matrix: see `spectrum`
        updates    ||dW|| / ||W||
        alignment  cosine of the update with -gradient, and with Adam's step if the optimizer
                   keeps both moments
        sharpness  top Hessian eigenvalue, trace and SAM sharpness on the batch: about sixty
                   gradient evaluations

    The update dW is the whole change of the step, weight decay included; the gradient is p.grad
    after the step. Measures of a tensor that is not finite are nan.
    """

    def __init__(self, names: Sequence[Instrument], model: nn.Module, optimizer: Optimizer,
                 objective: Objective) -> None:
        self.names, self.model, self.optimizer, self.objective = (
            tuple(names), model, optimizer, objective)
        self.every = 1
        self.steps = 0
        self.seconds = 0.0
        self.before: dict[str, Tensor] | None = None  # weights before the measured step
        self.values: dict[str, list[float]] = {}
        hidden = {name for name, (role, _) in roles_of(model).items() if role == "hidden"}
        self.matrices = {name: p for name, p in model.named_parameters()
                         if name in hidden and p.ndim >= 2}
        if names:
            optimizer.register_step_pre_hook(self._before)
            optimizer.register_step_post_hook(self._after)

    def take(self) -> dict[str, float]:
        """Return the means since the last call, including seconds per measurement."""
        means = {key: sum(values) / len(values) for key, values in self.values.items()}
        self.values = {}
        return means

    def _before(self, *_) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            started = self._now()
            self.before = {name: p.detach().clone() for name, p in self.matrices.items()}
            self.seconds += self._now() - started

    @torch.no_grad()
    def _after(self, *_) -> None:
        before, self.before = self.before, None
        if before is None:
            return
        for instrument in self.names:
            started = self._now()
            getattr(self, f"_{instrument}")(before)
            spent = self._now() - started
            self.seconds += spent
            self._note(f"{instrument}/seconds", spent)

    def _now(self) -> float:
        # Kernels of the step that are still queued count as the step's time.
        wait_for(next(self.model.parameters()).device)
        return time.perf_counter()

    def _spectrum(self, before: dict[str, Tensor]) -> None:
        for name, p in self.matrices.items():
            tensors = {"gradient": p.grad, "adam": adam_direction(self.optimizer, p),
                       "update": p - before[name]}
            for kind, tensor in tensors.items():
                if tensor is not None:
                    for measure, value in spectrum(tensor).items():
                        self._note(f"spectrum/{name}/{kind}/{measure}", value)

    def _updates(self, before: dict[str, Tensor]) -> None:
        for name, p in self.matrices.items():
            change = (p - before[name]).norm() / before[name].norm()
            self._note(f"updates/{name}/ratio", float(change))

    def _alignment(self, before: dict[str, Tensor]) -> None:
        for name, p in self.matrices.items():
            update = p - before[name]
            if p.grad is not None:
                self._note(f"alignment/{name}/gradient", cosine(update, -p.grad))
            adam = adam_direction(self.optimizer, p)
            if adam is not None:
                self._note(f"alignment/{name}/adam", cosine(update, -adam))

    def _sharpness(self, _: dict[str, Tensor]) -> None:
        from exp.harness.curvature import curvature

        after = {name: p.detach().clone() for name, p in self.matrices.items()}
        watched = [layer for layer in _attention_layers(self.model) if layer.max_logits is not None]
        logits = [layer.max_logits for layer in watched]  # of training passes
        # Compiled functions cannot be differentiated twice.
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            params = [p for p in self.model.parameters() if p.requires_grad]
            gradients = [p.grad for p in params]
            for measure, value in curvature(self.model, self.objective.batch, params).items():
                self._note(f"sharpness/{measure}", value)
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient
        for name, p in self.matrices.items():
            p.copy_(after[name])
        for layer, largest in zip(watched, logits, strict=True):
            layer.max_logits = largest

    def _note(self, key: str, value: float) -> None:
        self.values.setdefault(key, []).append(value)


def _attention_layers(model: nn.Module) -> list[AttentionLayer]:
    return getattr(model, "attention_layers", list)()


def spectrum(tensor: Tensor) -> dict[str, float]:
    """Measures of the singular values s of a matrix, means over a stack (`as_matrices`).

    entropy: H(s / sum s) / log r, 1 where all are equal; effective_rank: exp H (Roy & Vetterli
    2007); condition: s_max / s_min; orthogonality_error: the relative deviation of s from its
    mean, 0 for a multiple of an orthogonal matrix. Computed in float32 at least.
    """
    matrices = as_matrices(tensor)
    matrices = matrices if matrices.dtype == torch.float64 else matrices.float()
    if not torch.isfinite(matrices).all():
        return dict.fromkeys(("entropy", "effective_rank", "condition", "orthogonality_error"),
                             math.nan)
    values = torch.linalg.svdvals(matrices)
    shares = values / values.sum(-1, keepdim=True)
    entropy = -torch.xlogy(shares, shares).sum(-1)
    rank = values.shape[-1]
    mean = values.mean(-1, keepdim=True)
    measures = {
        "entropy": entropy / math.log(rank) if rank > 1 else torch.ones_like(entropy),
        "effective_rank": entropy.exp(),
        "condition": values[..., 0] / values[..., -1],
        "orthogonality_error": (values / mean - 1).square().mean(-1).sqrt(),
    }
    return {name: float(value.mean()) for name, value in measures.items()}


def adam_direction(optimizer: Optimizer, p: Tensor) -> Tensor | None:
    """Adam's direction m / (sqrt(v) + tiny) from the optimizer's moments; None if it keeps none.

    Without bias correction, which is one factor for the whole tensor.
    """
    state = optimizer.state.get(p, {})
    if "exp_avg" not in state or "exp_avg_sq" not in state \
            or state["exp_avg_sq"].shape != state["exp_avg"].shape:
        return None
    tiny = torch.finfo(state["exp_avg_sq"].dtype).tiny ** 0.5
    return state["exp_avg"] / (state["exp_avg_sq"].sqrt() + tiny)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine between two tensors of equal shape; nan if one is zero."""
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))
