"""Grokking: modular arithmetic with a one-layer transformer.

python -m exp.grokking.train --config config/lrp_grok_ars2_neo_aga_400e.toml
"""

import sys

from exp.harness.arguments import parse

if __name__ == "__main__":
    parse("grokking")  # answers --help and mistyped options before torch is imported

from data.modular import Modular, modular
from exp.harness import classification
from exp.harness.build import build
from exp.harness.cli import launch
from exp.harness.folder import RunFolder
from exp.harness.objective import Objective
from exp.harness.run import Run
from exp.harness.task import Metric, Task

EVAL_BATCH = {"cpu": 2**10, "cuda": 2**14}  # examples per batch: fit a CPU's cache, fill a GPU


def evaluate(objective: Objective, data: Modular, split: str = "eval") -> dict[str, float]:
    """Loss (nats) and accuracy over all held-out examples."""
    return classification.evaluate(objective, *getattr(data, split), rows=EVAL_BATCH)


TASK = Task(
    "grokking", data=modular, sizes=("vocab_size",),
    loss_fn=classification.loss_fn, evaluate=evaluate,
    metrics=(Metric("eval_accuracy", "max", "%", "accuracy", primary=True),),
    milestones={"fit": ("train_accuracy", 0.99), "grok": ("eval_accuracy", 0.90),
                "converged": ("eval_accuracy", 0.99)})


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


if __name__ == "__main__":
    sys.exit(launch(TASK, train))
