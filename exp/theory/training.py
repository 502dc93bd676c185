"""Real tensors for the experiments: a model of one of the tasks, trained for a few steps."""

import importlib
import tomllib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from exp.harness.build import Built, build
from exp.harness.config import complete
from exp.harness.facts import ROOT

CONFIGS = {"grokking": "lrp_grok_adamw_600e", "cifar": "mini_cifar10_adamw",
           "wikitext2": "mini_wikitext2_adamw"}


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


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    """The hidden matrices and stacks of a model, by name."""
    roles = model.roles()
    return {name: p for name, p in model.named_parameters()
            if roles[name] == "hidden" and p.ndim >= 2}
