"""The closure that an optimizer calls: loss and gradients of one batch."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from exp.harness.distributed import Applied, all_sum, part_of, size

LossFunction = Callable[..., tuple[Tensor, dict[str, Tensor]]]


class Objective:
    """Makes the closure of a batch, counts gradient evaluations, averages losses over the epoch.

    loss_fn(model, *batch) returns the mean loss of the batch and further means to average
    (accuracy, for example); the averages are over the FIRST call of each step, weighted by batch
    size, and stay on the device until `means`.

    Later calls of a step (sharpness-aware passes) do not update batch-norm running statistics and
    draw the same random numbers (dropout) as the first.

    With several processes each computes its part of a batch; losses, means and gradients are those
    of the whole batch. `applied` then runs the model (see `data_parallel`).
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, autocast: Callable,
                 applied: nn.Module | None = None) -> None:
        self.model, self.loss_fn, self.autocast = model, loss_fn, autocast
        self.applied = applied or Applied(model)
        self.norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.gradient_evaluations = 0
        self.last_loss: Tensor | None = None
        self.batch: tuple[Tensor, ...] = ()  # of the last `on`
        self.reset()

    def reset(self) -> None:
        """Start a new epoch's averages."""
        self.sums: dict[str, Tensor] = {}
        self.examples = 0

    def on(self, batch: tuple[Tensor, ...]) -> Callable[[], Tensor]:
        """The closure of one batch: zero gradients, forward, backward, return the loss.

        closure(synchronize=False) leaves each process the gradient of its own part: no traffic.
        """
        self.batch = batch
        calls = 0
        rng = None

        def closure(synchronize: bool = True) -> Tensor:
            nonlocal calls, rng
            calls += 1
            self.gradient_evaluations += 1
            quiet = nullcontext() if synchronize or size() == 1 else self.applied.no_sync()
            with quiet:
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
        part, share = part_of(batch)
        with self.autocast():
            loss, means = self.applied(self.loss_fn, *part)
        if size() == 1:
            loss.backward()
            return loss.detach(), means
        # DDP averages gradients over processes; this makes it a sum.
        (loss * (share * size())).backward()
        return of_whole_batch(loss.detach(), means, share)

    @torch.inference_mode()
    def measure(self, function: Callable, *inputs: Tensor) -> Any:
        """function(model, *inputs) in eval mode, with autocast, without gradients."""
        self.model.eval()
        with self.autocast():
            return self.applied(function, *inputs)

    def means(self) -> dict[str, float]:
        """The epoch's averages so far, prefixed "train_"."""
        return {f"train_{name}": float(total) / self.examples for name, total in self.sums.items()}

    def state_dict(self) -> dict:
        """Counters and the averages of an unfinished epoch."""
        return {"gradient_evaluations": self.gradient_evaluations, "sums": self.sums,
                "examples": self.examples}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.gradient_evaluations, self.examples = state["gradient_evaluations"], state["examples"]
        device = next(self.model.parameters()).device
        self.sums = {name: total.to(device) for name, total in state["sums"].items()}


def of_whole_batch(loss: Tensor, means: dict[str, Tensor], share: Tensor | float
                   ) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the means of the whole batch from those of this process's share."""
    values = torch.stack([value.double() for value in (loss, *means.values())]) * share
    whole, *rest = all_sum(values)
    return whole, dict(zip(means, rest, strict=True))


@contextmanager
def frozen_statistics(norms: list[nn.Module]):
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
