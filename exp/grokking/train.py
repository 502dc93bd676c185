"""Grokking: modular arithmetic by a one-layer transformer; metric eval_accuracy.

python -m exp.grokking.train --config config/lrp_grok_ars2_neo_aga_400e.toml
"""

import sys

from torch import Tensor

from data.modular import modular
from exp.harness import classification
from exp.harness.build import build
from exp.harness.classification import loss_fn
from exp.harness.cli import launch
from exp.harness.config import Task
from exp.harness.folder import RunFolder
from exp.harness.objective import Objective
from exp.harness.run import Run

TASK = Task("grokking", data=modular, sizes=("vocab_size",))
EVAL_BATCH = {"cpu": 2**10, "cuda": 2**14}  # pairs: a CPU's cache, enough to fill a card
MILESTONES = {
    "fit": ("train_accuracy", 0.99),
    "grok": ("eval_accuracy", 0.90),
    "converged": ("eval_accuracy", 0.99),
}


# --- task


def evaluate(objective: Objective, tokens: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss (nats) and accuracy over all held-out pairs."""
    return classification.evaluate(objective, tokens, labels, EVAL_BATCH[tokens.device.type])


# --- run


def train(settings: dict, folder: RunFolder) -> None:
    """Train as the checked `settings` say and record the run in `folder`."""
    built = build(settings, TASK, loss_fn)
    optimizer, objective = built.optimizer, built.objective
    with Run(folder, settings, built.model, optimizer, objective, metric="eval_accuracy",
             mode="max", milestones=MILESTONES) as run:
        for _ in run.epochs():
            for batch in run.batches(built.data.train):
                built.schedule.set_lr(run.step)
                optimizer.step(objective.on(batch))
            run.log(evaluate(objective, *built.data.eval))


def main() -> int:
    """Run the command line; the exit status."""
    return launch(TASK, train)


if __name__ == "__main__":
    sys.exit(main())
