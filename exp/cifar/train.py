"""CIFAR-10 with ResNet-18; metric eval_accuracy, on the test set.

python -m exp.cifar.train --config config/lrp_cifar10_ars2_neo_aga_20e.toml
"""

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.cifar10 import cifar10
from exp.harness.build import build
from exp.harness.cli import launch
from exp.harness.config import Task
from exp.harness.distributed import all_sum, my_batches
from exp.harness.folder import RunFolder
from exp.harness.objective import Objective
from exp.harness.run import Run

TASK = Task("cifar", data=cifar10, sizes=("num_classes",))
EVAL_BATCH = 500  # images at a time, small enough for a CPU's cache


# --- task


def loss_fn(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross entropy and accuracy; images (batch, 3, 32, 32), labels (batch,)."""
    logits = model(images)
    accuracy = (logits.argmax(-1) == labels).float().mean()
    return F.cross_entropy(logits, labels), {"accuracy": accuracy}


def evaluate(objective: Objective, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss (nats) and accuracy over all images, each counted once."""
    sums = torch.zeros(2, dtype=torch.float64, device=images.device)
    for batch, target in my_batches(EVAL_BATCH, images, labels):
        sums += objective.measure(loss_and_correct, batch, target)
    loss, accuracy = (all_sum(sums) / len(labels)).tolist()
    return {"eval_loss": loss, "eval_accuracy": accuracy}


def loss_and_correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Sum of the losses (nats) and number of right answers, (2,) in float64."""
    logits = model(images)
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    return torch.stack([loss.double(), (logits.argmax(-1) == labels).sum().double()])


# --- run


def train(settings: dict, folder: RunFolder) -> None:
    """Train as the checked `settings` say and record the run in `folder`."""
    built = build(settings, TASK, loss_fn)
    optimizer, objective = built.optimizer, built.objective
    with Run(folder, settings, built.model, optimizer, objective, metric="eval_accuracy",
             mode="max") as run:
        for _ in run.epochs():
            for batch in run.batches(built.data.train):
                built.schedule.set_lr(run.step)
                optimizer.step(objective.on(batch))
            run.log(evaluate(objective, *built.data.eval))
        if built.data.test is not None:
            run.test(lambda: evaluate(objective, *built.data.test))


def main() -> int:
    """Run the command line; the exit status."""
    return launch(TASK, train)


if __name__ == "__main__":
    sys.exit(main())
