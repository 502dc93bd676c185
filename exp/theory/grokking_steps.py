"""Real matrices for the experiments: the grokking model, trained for a few steps."""

import tomllib
from collections.abc import Iterator

import torch
from torch import nn

from exp.grokking.train import TASK, loss_fn
from exp.harness.build import Built, build
from exp.harness.config import complete
from exp.harness.facts import ROOT

CONFIG = ROOT / "config" / "lrp_grok_adamw_600e.toml"


def built(optimizer: dict, seed: int) -> Built:
    """The published grokking task with another `[optimizer]` table, on the CPU."""
    settings = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    settings["experiment"] |= {"seed": seed, "device": "cpu"}
    settings["optimizer"] = optimizer
    return build(complete(settings, TASK), TASK, loss_fn)


def steps(run: Built, count: int) -> Iterator[int]:
    """Train; yield the number of each step after it is done."""
    done = 0
    epoch = 0
    while done < count:
        for batch in run.data.train.epoch(epoch):
            run.optimizer.step(run.objective.on(batch))
            done += 1
            yield done
            if done == count:
                return
        epoch += 1


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    """The hidden matrices and stacks of a model, by name."""
    roles = model.roles()
    return {name: p for name, p in model.named_parameters()
            if roles[name] == "hidden" and p.ndim >= 2}
