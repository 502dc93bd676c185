"""Wikitext-2 with a small Qwen3, evaluated on the validation split.

python -m exp.wikitext2.train --config config/lrp_wikitext2_ars2_neo_sync_10e.toml
"""

import math
import sys
from typing import Literal

from exp.harness.arguments import parse

if __name__ == "__main__":
    parse("wikitext2")  # answers --help and mistyped options before torch is imported

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.batches import IGNORED
from data.wikitext2 import Wikitext2, wikitext2
from exp.harness.build import build
from exp.harness.cli import launch
from exp.harness.distributed import all_sum, my_batches
from exp.harness.folder import RunFolder
from exp.harness.objective import Objective
from exp.harness.run import Run
from exp.harness.task import Metric, Task
from exp.wikitext2.loss import Factored, linear_cross_entropy, token_losses

EVAL_TOKENS = {"cpu": 2**10, "cuda": 2**15}  # per batch: fit a CPU's cache, fill a GPU


def loss_fn(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross entropy of the next token, nats. inputs, targets: (batch, sequence); targets of
    -100 are ignored. A `Factored` model's full logits are never materialized.
    """
    if isinstance(model, Factored):
        features = model.features(inputs).flatten(0, 1)
        return linear_cross_entropy(features, model.head_weight, targets.flatten()), {}
    logits, targets = model(inputs).flatten(0, 1), targets.flatten()
    total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
    return total / (targets != IGNORED).sum().clamp_min(1), {}


def next_token_losses(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of every target, nats, (batch * sequence,), without gradients. inputs: (batch,
    sequence); targets: (batch * sequence,)."""
    if isinstance(model, Factored):
        return token_losses(model.features(inputs).flatten(0, 1), model.head_weight, targets)
    return F.cross_entropy(model(inputs).flatten(0, 1), targets, reduction="none")


def evaluate(
    objective: Objective, data: Wikitext2, split: Literal["eval", "test"] = "eval"
) -> dict[str, float]:
    """Loss (nats per real token), its perplexity, the published perplexity, which counts padding,
    and bits per UTF-8 byte of text, which is comparable across tokenizers."""
    inputs, targets = getattr(data, split)
    sums = torch.zeros(2, dtype=torch.float64, device=inputs.device)  # real tokens, padding
    rows = max(1, EVAL_TOKENS[inputs.device.type] // inputs.shape[1])
    for batch, target in my_batches(rows, inputs, targets):
        padding = target.flatten() == IGNORED
        tokens = target.flatten().masked_fill(padding, data.pad_id)
        losses = objective.measure(next_token_losses, batch, tokens).double()
        sums += torch.stack([losses.masked_fill(kind, 0.0).sum() for kind in (padding, ~padding)])
    all_sum(sums)
    real = int((targets != IGNORED).sum())
    loss = float(sums[0]) / real
    return {
        "eval_loss": loss,
        "eval_perplexity": exp(loss),
        "eval_perplexity_padded": exp(float(sums.sum()) / targets.numel()),
        "eval_bits_per_byte": float(sums[0]) / math.log(2) / getattr(data, f"{split}_bytes"),
    }


def exp(loss: float) -> float:
    """e^loss, infinite on overflow."""
    return math.exp(loss) if loss < 700 else math.inf


TASK = Task(
    "wikitext2", data=wikitext2, sizes=("vocab_size",), loss_fn=loss_fn, evaluate=evaluate,
    metrics=(Metric("eval_perplexity", "min", "ppl", "perplexity", primary=True),
             Metric("eval_perplexity_padded", "min", "ppl", "perplexity, padding counted"),
             Metric("eval_bits_per_byte", "min", "bits", "bits per byte")))


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
        run.test(lambda: evaluate(objective, data, "test"))


if __name__ == "__main__":
    sys.exit(launch(TASK, train))
