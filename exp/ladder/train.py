"""The ladder: a small language model on English text, one pass, judged at the last step.

python -m exp.ladder.train --config config/ladder_adamw.toml
"""

import math
import sys

from exp.harness.arguments import parse

if __name__ == "__main__":
    parse("ladder")  # answers --help and mistyped options before torch is imported

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.ladder import Ladder, ladder, pairs
from exp.harness.build import build
from exp.harness.cli import launch
from exp.harness.distributed import all_sum, my_batches
from exp.harness.folder import RunFolder
from exp.harness.objective import Objective
from exp.harness.run import Run
from exp.harness.task import Metric, Task

EVAL_BYTES = {"cpu": 2**12, "cuda": 2**18}  # per batch: fit a CPU's cache, fill a GPU


def loss_fn(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross entropy of the next token, nats. inputs, targets: (batch, sequence)."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()), {}


def total_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross entropies, nats, in full precision whatever the training precision."""
    with torch.autocast(inputs.device.type, enabled=False):
        logits = model(inputs).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), reduction="sum").double()


def evaluate(objective: Objective, data: Ladder, split: str = "eval") -> dict[str, float]:
    """Loss (nats per byte) and bits per byte of the held-out windows."""
    windows = getattr(data, split)
    total = torch.zeros((), dtype=torch.float64, device=windows.device)
    rows = max(1, EVAL_BYTES[windows.device.type] // (windows.shape[1] - 1))
    for (part,) in my_batches(rows, windows):
        total += objective.measure(total_loss, *pairs(part))
    all_sum(total)
    loss = float(total) / data.eval_bytes
    return {"eval_loss": loss, "eval_bits_per_byte": loss / math.log(2)}


TASK = Task(
    "ladder", data=ladder, sizes=("vocab_size",), loss_fn=loss_fn, evaluate=evaluate,
    metrics=(Metric("eval_bits_per_byte", "min", "bits", "bits per byte", primary=True),))


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
