"""Loss and evaluation of a classifier: what tasks with one label an example share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exp.harness.distributed import all_sum, my_batches
from exp.harness.objective import Objective


def loss_fn(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross entropy and accuracy; labels (batch,)."""
    logits = model(inputs)
    accuracy = (logits.argmax(-1) == labels).float().mean()
    return F.cross_entropy(logits, labels), {"accuracy": accuracy}


def evaluate(objective: Objective, inputs: Tensor, labels: Tensor, rows: dict[str, int]
             ) -> dict[str, float]:
    """Loss (nats) and accuracy over all examples, each counted once.

    rows: examples at a time by type of device, {"cpu": 500, "cuda": 2500}.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=inputs.device)
    for batch, target in my_batches(rows[inputs.device.type], inputs, labels):
        sums += objective.measure(loss_and_correct, batch, target)
    loss, accuracy = (all_sum(sums) / len(labels)).tolist()
    return {"eval_loss": loss, "eval_accuracy": accuracy}


def loss_and_correct(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Sum of the losses (nats) and number of right answers, (2,) in float64."""
    logits = model(inputs)
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    return torch.stack([loss.double(), (logits.argmax(-1) == labels).sum().double()])
