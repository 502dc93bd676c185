"""The closure that an optimizer calls: loss and gradients of one batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from exp.harness.batch_norm import new_statistics
from exp.harness.clipping import Clipping
from exp.harness.distributed import Applied, all_sum, parts_of, size
from optimizer.parts.base import Closure

LossFunction = Callable[..., tuple[Tensor, dict[str, Tensor]]]


class Objective:
    """Makes the closure of a batch, counts gradient evaluations, averages losses over the epoch.

    loss_fn(model, *batch) returns the mean loss of the batch and a dict of further means (accuracy,
    for example). Epoch averages use the FIRST closure call of each step, weighted by batch size,
    and stay on the device until `means`. `clipping` adds its averages.

    Later calls of a step (sharpness-aware passes) do not update batch-norm running statistics and
    draw the same random numbers (dropout) as the first.

    Each process computes its shard of a batch, in `accumulation` micro-batches one after the other.
    Losses, means and gradients are those of the whole batch; batch norm normalizes by the
    statistics of one micro-batch. applied: runs the model (see `data_parallel`).

    An optimizer may evaluate other weights than it trains, an average for example. These need their
    own batch-norm statistics: `average_statistics` computes them, `restore_statistics` restores
    those of training.

    graph: make gradients differentiable, for rules that use Hessian-vector products. These products
    are not counted as gradient evaluations.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, autocast: Callable,
                 applied: nn.Module | None = None, accumulation: int = 1,
                 clipping: Clipping | None = None, *, graph: bool = False) -> None:
        self.model, self.loss_fn, self.autocast, self.graph = model, loss_fn, autocast, graph
        self.applied = applied or Applied(model)
        self.accumulation, self.clipping = accumulation, clipping
        self.norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        self.training_statistics: list[Tensor] = []  # while the model holds others
        self.gradient_evaluations = 0
        self.last_loss = torch.tensor(torch.nan)  # of the first call of a step
        self.batch: tuple[Tensor, ...] = ()  # the last argument of `on`
        self.reset()

    def reset(self) -> None:
        """Start a new epoch's averages."""
        self.sums: dict[str, Tensor] = {}
        self.examples = 0
        if self.clipping is not None:
            self.clipping.reset()

    def on(self, batch: tuple[Tensor, ...]) -> Closure:
        """Return the closure of one batch: zero gradients, forward, backward, return the loss.

        closure(synchronize=False) skips the all-reduce: each process keeps its shard's gradient.
        """
        self.batch = batch
        calls = 0
        rng: dict[str, Tensor] = {}

        @torch.enable_grad()  # a library's optimizer may call it under no_grad
        def closure(synchronize: bool = True) -> Tensor:
            nonlocal calls, rng
            calls += 1
            self.gradient_evaluations += 1
            with self._quiet(not synchronize):
                if calls == 1:
                    rng = rng_state(batch[0].device)
                    return self._first(batch)
                set_rng_state(rng, batch[0].device)
                with frozen_statistics(self.norms):
                    return self._gradients(batch)[0]

        return closure

    def _first(self, batch: tuple[Tensor, ...]) -> Tensor:
        loss, means = self._gradients(batch)
        self.last_loss = loss
        self.examples += len(batch[0])
        for name, mean in {"loss": loss, **means}.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(mean, dtype=torch.float64)
            self.sums[name].add_(mean.detach(), alpha=len(batch[0]))
        return loss

    def _gradients(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        self.model.zero_grad(set_to_none=True)
        parts = parts_of(batch, self.accumulation)
        total = batch[0].new_zeros((), dtype=torch.float64)
        for number, (part, share) in enumerate(parts, 1):
            with self._quiet(number < len(parts)):
                with self.autocast():
                    loss, means = self.applied(self.loss_fn, *part)
                if size() == len(parts) == 1:
                    backward(loss, self.model, graph=self.graph)
                    return loss.detach(), means
                # DDP averages gradients over processes; the factor size() makes that a sum.
                backward(loss * (share * size()), self.model, graph=self.graph)
            values = [value.detach().double() for value in (loss, *means.values())]
            total = total + torch.stack(values) * share
        whole, *rest = all_sum(total)
        return whole, dict(zip(means, rest, strict=True))

    def _quiet(self, quiet: bool) -> AbstractContextManager:
        """Context in which DDP does not synchronize gradients. FSDP models have none: they
        accumulate gradients that are already reduced."""
        no_sync = getattr(self.applied, "no_sync", nullcontext)
        return no_sync() if quiet else nullcontext()

    @torch.inference_mode()
    def measure(self, function: Callable, *inputs: Tensor) -> Any:
        """Return function(model, *inputs) in eval mode, with autocast and without gradients."""
        self.model.eval()
        with self.autocast():
            return self.applied(function, *inputs)

    @torch.no_grad()
    def average_statistics(self, batches: Iterable[tuple[Tensor, ...]]) -> None:
        """Recompute the batch-norm running statistics for the model's present weights in one pass
        over `batches`. The random state is restored. Does nothing without batch norm."""
        norms = [norm for norm in self.norms if norm.track_running_stats]
        if not norms:
            return
        self.training_statistics = [buffer.clone() for buffer in _statistics(norms)]
        device = next(self.model.parameters()).device
        state = rng_state(device)
        self.model.train()
        with new_statistics(norms):
            for batch in batches:
                for part, _ in parts_of(batch, self.accumulation):
                    with self.autocast():
                        self.applied(self.loss_fn, *part)
        set_rng_state(state, device)

    @torch.no_grad()
    def restore_statistics(self) -> None:
        """Restore the running statistics of training, if `average_statistics` replaced them."""
        for buffer, kept in zip(_statistics(self.norms), self.training_statistics, strict=False):
            buffer.copy_(kept)
        self.training_statistics = []

    def means(self) -> dict[str, float]:
        """The epoch's averages so far, prefixed "train_", and those of clipping."""
        means = {f"train_{name}": float(total) / self.examples for name, total in self.sums.items()}
        return means | (self.clipping.means() if self.clipping else {})

    def state_dict(self) -> dict:
        """Counters and the averages of an unfinished epoch."""
        clipping = {"clipping": self.clipping.state_dict()} if self.clipping else {}
        return {"gradient_evaluations": self.gradient_evaluations, "sums": self.sums,
                "examples": self.examples, "training_statistics": self.training_statistics,
                **clipping}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.gradient_evaluations, self.examples = state["gradient_evaluations"], state["examples"]
        device = next(self.model.parameters()).device
        self.sums = {name: total.to(device) for name, total in state["sums"].items()}
        self.training_statistics = state.get("training_statistics", [])
        if self.clipping is not None:
            self.clipping.load_state_dict(state["clipping"], device)


def _statistics(norms: list[_BatchNorm]) -> list[Tensor]:
    return [buffer for norm in norms if norm.track_running_stats for buffer in norm.buffers()]


def backward(loss: Tensor, model: nn.Module, *, graph: bool = False) -> None:
    """Accumulate the gradients of `loss` in p.grad; with `graph` they are differentiable."""
    if not graph:
        loss.backward()
        return
    # loss.backward(create_graph=True) would warn of a reference cycle, which zero_grad breaks.
    params = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    for p, gradient in zip(params, gradients, strict=True):
        if gradient is not None:
            p.grad = gradient if p.grad is None else p.grad + gradient


@contextmanager
def frozen_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Inside, batch norms normalize by batch statistics without updating their running ones."""
    tracking = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's random generators for `device`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
