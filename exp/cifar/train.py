"""CIFAR-10 with ResNet-18, evaluated on the test set or on `data.validation` of the training set.

python -m exp.cifar.train --config config/lrp_cifar10_ars2_neo_aga_20e.toml
"""

import sys

from exp.harness.arguments import parse

if __name__ == "__main__":
    parse("cifar")  # answers --help and mistyped options before torch is imported

from data.cifar10 import CIFAR10, cifar10
from exp.harness import classification
from exp.harness.build import build
from exp.harness.cli import launch
from exp.harness.folder import RunFolder
from exp.harness.objective import Objective
from exp.harness.run import Run
from exp.harness.task import Metric, Task

EVAL_BATCH = {"cpu": 500, "cuda": 2500}  # images per batch: fit a CPU's cache, fill a GPU


def evaluate(objective: Objective, data: CIFAR10, split: str = "eval") -> dict[str, float]:
    """Loss (nats) and accuracy over all images of a split, each counted once."""
    return classification.evaluate(objective, *getattr(data, split), rows=EVAL_BATCH)


TASK = Task(
    "cifar", data=cifar10, sizes=("num_classes",),
    loss_fn=classification.loss_fn, evaluate=evaluate,
    metrics=(Metric("eval_accuracy", "max", "%", "accuracy", primary=True),))


def train(settings: dict, folder: RunFolder) -> None:
    """Train with checked `settings` and record the run in `folder`."""
    built = build(settings, TASK)
    data, optimizer, objective = built.data, built.optimizer, built.objective
    with Run(folder, built) as run:
        for _ in run.epochs():
            for batch in run.batches(data.train):
                built.schedule.set_lr(run.step)
                optimizer.step(objective.on(batch))
            run.log(evaluate(objective, data))
        if data.test is not None:
            run.test(lambda: evaluate(objective, data, "test"))


if __name__ == "__main__":
    sys.exit(launch(TASK, train))
