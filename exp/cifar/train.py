"""CIFAR-10 with ResNet-18; metric eval_accuracy, on the test set.

python -m exp.cifar.train --config config/lrp_cifar10_ars2_neo_aga_20e.toml
"""

import sys

from torch import Tensor

from data.cifar10 import cifar10
from exp.harness import classification
from exp.harness.build import build
from exp.harness.classification import loss_fn
from exp.harness.cli import launch
from exp.harness.config import Task
from exp.harness.folder import RunFolder
from exp.harness.objective import Objective
from exp.harness.run import Run

TASK = Task("cifar", data=cifar10, sizes=("num_classes",))
EVAL_BATCH = {"cpu": 500, "cuda": 2500}  # images: a CPU's cache, enough to fill a card


# --- task


def evaluate(objective: Objective, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss (nats) and accuracy over all images, each counted once."""
    return classification.evaluate(objective, images, labels, EVAL_BATCH[images.device.type])


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
