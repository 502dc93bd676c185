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
from torch.utils.checkpoint import checkpoint

from data.ladder import Ladder, ladder, pairs
from exp.harness.build import build
from exp.harness.cli import launch
from exp.harness.distributed import all_sum, my_batches
from exp.harness.folder import RunFolder
from exp.harness.objective import Objective
from exp.harness.run import Run
from exp.harness.task import Metric, Task
from model.gpt import GPT

EVAL_TOKENS = {"cpu": 2**12, "cuda": 2**18}  # per batch: fit a CPU's cache, fill a GPU
LOGITS = 2**29  # bytes of float32 logits at a time; only large vocabularies reach it


def loss_fn(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross entropy of the next token, nats. inputs, targets: (batch, sequence). If a GPT's
    logits take more than LOGITS bytes, they are computed in chunks of positions, and once more in
    the backward pass."""
    targets = targets.flatten()
    chunks = -(-4 * len(targets) * model.head.out_features // LOGITS) if isinstance(
        model, GPT) else 1
    if chunks == 1:
        return F.cross_entropy(model(inputs).flatten(0, 1), targets), {}
    features = model(inputs, only_features=True).flatten(0, 1)
    parts = zip(features.tensor_split(chunks), targets.tensor_split(chunks), strict=True)
    return torch.stack([checkpoint(_sum_of_losses, model, *part, use_reentrant=False)
                        for part in parts]).sum() / len(targets), {}


def _sum_of_losses(model: GPT, features: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model.logits(features), targets, reduction="sum")


def total_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross entropies, nats, in full precision whatever the training precision."""
    with torch.autocast(inputs.device.type, enabled=False):
        logits = model(inputs).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), reduction="sum").double()


def evaluate(objective: Objective, data: Ladder, split: str = "eval") -> dict[str, float]:
    """Loss (nats per byte) and bits per byte of the held-out windows."""
    windows = getattr(data, split)
    total = torch.zeros((), dtype=torch.float64, device=windows.device)
    rows = eval_rows(windows.device.type, data.vocab_size, windows.shape[1] - 1)
    for (part,) in my_batches(rows, windows):
        total += objective.measure(total_loss, *pairs(part))
    all_sum(total)
    loss = float(total) / data.eval_bytes
    return {"eval_loss": loss, "eval_bits_per_byte": loss / math.log(2)}


def eval_rows(device: str, vocab_size: int, length: int) -> int:
    """Return the windows of `length` tokens per evaluation batch: at most LOGITS bytes of logits.
    """
    return max(1, min(EVAL_TOKENS[device], LOGITS // (4 * vocab_size)) // length)


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
