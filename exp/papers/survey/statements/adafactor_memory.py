"""The size in bytes of Adafactor's and AdamW's state for three models."""

from collections.abc import Iterable

import torch
from torch import nn

from exp.report.judgement import judge_exact
from exp.report.rows import Row, Rows
from exp.theory.statement import Verdict
from model import build_model
from optimizer.parts.state import state_per_weight

MODELS: dict[str, dict] = {"modular addition": {"name": "grokking_transformer", "vocab_size": 114},
          "CIFAR-10": {"name": "resnet18"}, "Wikitext-2": {"name": "qwen3", "vocab_size": 40479}}
RULES = {"AdamW": torch.optim.AdamW, "Adafactor": torch.optim.Adafactor}
LOW, HIGH = 0.4, 0.6
GRID = {"task": MODELS}


def measure(seeds: list[int], task: str) -> Iterable[Row]:
    """Yield both rules' state over weights in bytes, their ratio, and the ratio with a first
    moment."""
    model = build_model(dict(MODELS[task]))
    adamw, adafactor = (state(model, rule) for rule in RULES.values())
    yield Row("AdamW, of the weights", 0, adamw)
    yield Row("Adafactor, of the weights", 0, adafactor)
    yield Row("share", 0, adafactor / adamw)
    yield Row("share, with a first moment", 0, (1 + adafactor) / adamw)


def state(model: nn.Module, rule: type) -> float:
    """Return bytes of state over bytes of weights after one step."""
    optimizer = rule(model.parameters(), lr=1e-3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return state_per_weight(optimizer)


def judge(rows: Rows) -> Verdict:
    """Judge by the ratios."""
    shares = {task: values[0] for task, values in rows.where(axis="share").tree("task").items()}
    return Verdict(judge_exact(all(LOW <= share <= HIGH for share in shares.values())),
                   "Adafactor's state as a share of AdamW's: " + ", ".join(
                       f"{100 * share:.3g} % ({task})" for task, share in shares.items()))
