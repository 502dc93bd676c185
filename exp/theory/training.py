"""Real tensors for the experiments: a model of one of the tasks, trained for a few steps."""

import importlib
import math
import tomllib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from data.cifar10 import normalize
from exp.harness.build import Built, build
from exp.harness.config import complete
from exp.harness.facts import ROOT

CONFIGS = {"grokking": "lrp_grok_adamw_600e", "cifar": "mini_cifar10_adamw",
           "wikitext2": "mini_wikitext2_adamw"}
# Tables for `built` with which a task runs hundreds of times.
SMALL = {
    "wikitext2": {
        "data": {"vocab_size": 1024, "sequence_length": 64, "subset": 1.0, "batch_size": 16},
        "model": {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2,
                  "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 192,
                  "max_position_embeddings": 64}},
    "cifar": {"data": {"subset": 0.05, "batch_size": 64}, "model": {"width": 4}},
    "grokking": {"data": {"p": 31, "fraction": 0.5, "batch_size": 128},
                 "model": {"d_model": 64, "d_head": 16, "d_mlp": 256}},
}


def built(optimizer: dict, seed: int, task: str = "grokking", **changes: dict) -> Built:
    """A task (grokking as published, the mini ones of the others) with another `[optimizer]`
    table, at a constant rate, on the CPU. changes: table -> keys that replace the config's."""
    module = importlib.import_module(f"exp.{task}.train")
    text = (ROOT / "config" / f"{CONFIGS[task]}.toml").read_text(encoding="utf-8")
    settings = tomllib.loads(text)
    settings["experiment"] |= {"seed": seed, "device": "cpu"}
    settings.pop("schedule", None)
    settings["optimizer"] = optimizer
    for table, keys in changes.items():
        settings[table] |= keys
    return build(complete(settings, module.TASK), module.TASK, module.loss_fn)


def examples(run: Built, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The first `count` training examples, or all, as the model takes them, not augmented:
    (inputs, targets)."""
    inputs, targets = (tensor[:count] for tensor in run.data.train.tensors)
    return (normalize(inputs) if inputs.dtype == torch.uint8 else inputs), targets


def batches(run: Built) -> Iterator[tuple[Tensor, ...]]:
    """The training batches, epoch after epoch."""
    epoch = 0
    while True:
        yield from run.data.train.epoch(epoch)
        epoch += 1


def steps(run: Built, count: int) -> Iterator[int]:
    """Train; yield the number of each step after it is done."""
    for done, batch in zip(range(1, count + 1), batches(run), strict=False):
        run.optimizer.step(run.objective.on(batch))
        yield done


def training_loss(run: Built, count: int) -> float:
    """Mean loss (nats) over all training examples after `count` steps; infinite if it diverged."""
    for _ in steps(run, count):
        pass
    with torch.no_grad():
        loss = float(run.objective.loss_fn(run.model, *examples(run))[0])
    return loss if math.isfinite(loss) else math.inf


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    """The hidden matrices and stacks of a model, by name."""
    roles = model.roles()
    return {name: p for name, p in model.named_parameters()
            if roles[name] == "hidden" and p.ndim >= 2}
