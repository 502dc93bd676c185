"""Loss and evaluation of a classifier, shared by the tasks with one label per example."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exp.harness.distributed import all_sum, my_batches
from exp.harness.objective import Objective


def loss_fn(model: nn.Module, inputs: Tensor, labels: Tensor, label_smoothing: float = 0.0
            ) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross entropy (nats) and accuracy; labels (batch,). label_smoothing: the share of each
    target that is uniform over classes (Szegedy et al. 2016, arXiv 1512.00567, section 7)."""
    logits = model(inputs)
    accuracy = (logits.argmax(-1) == labels).float().mean()
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return loss, {"accuracy": accuracy}


def evaluate(objective: Objective, inputs: Tensor, labels: Tensor, *, rows: dict[str, int]
             ) -> dict[str, float]:
    """Loss (nats) and accuracy over all examples, each counted once.

    rows: examples per batch by device type, for example {"cpu": 500, "cuda": 2500}.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=inputs.device)
    for batch, target in my_batches(rows[inputs.device.type], inputs, labels):
        sums += objective.measure(loss_and_correct, batch, target)
    loss, accuracy = (all_sum(sums) / len(labels)).tolist()
    return {"eval_loss": loss, "eval_accuracy": accuracy}


def loss_and_correct(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Sum of the losses (nats) and number of correct predictions, (2,) in float64."""
    logits = model(inputs)
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    return torch.stack([loss.double(), (logits.argmax(-1) == labels).sum().double()])
