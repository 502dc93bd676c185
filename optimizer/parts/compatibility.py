"""Test which optimizer classes of an installed library a config can use, by taking steps."""

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import nn

from .. import build_optimizer, optimizer_class
from .library import library_classes, reason, refusal, required, wants_graph

STEPS = 2
ROUTED = 'runs with routing = "role"'


def card(package: str) -> str:
    """Return one line per class of an installed package ("runs" or the reason why not), then the
    counts.

    Raises ValueError for a package that is not installed or has no optimizers.
    """
    names = library_classes(package)
    outcomes = {name: outcome(f"{package}:{name}") for name in names}
    width = max(map(len, names))
    lines = [f"{name:<{width}}  {words}" for name, words in outcomes.items()]
    runs = sum(words.startswith("runs") for words in outcomes.values())
    return "\n".join([*lines, "", f"{runs} of {len(names)} run"])


def outcome(name: str) -> str:
    """Return "runs", "runs with routing ...", or the reason why the class does not run."""
    why = problem({"name": name})
    if why is None:
        return "runs"
    routed = problem({"name": name, "routing": "role", "adamw": {"lr": 1e-3}})
    return f"{ROUTED}; alone: {why}" if routed is None else why


def problem(settings: dict) -> str | None:
    """Return why the optimizer of these settings cannot train a small network; None if it can."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16),
                          nn.LayerNorm(16), nn.Linear(16, 8))
    tokens = torch.arange(8)

    def closure() -> Any:
        model.zero_grad()
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(model(tokens), tokens.flip(0))
            loss.backward(create_graph=wants_graph(cls))
        return loss.detach()

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            cls = optimizer_class(settings["name"])
            if missing := required(cls):
                return f"needs {', '.join(missing)}"
            optimizer = build_optimizer(settings, model)
        except Exception as error:  # any exception of a library is reported as the reason
            return reason(error)
        try:
            for _ in range(STEPS):
                optimizer.step(closure)
        except Exception as error:
            return refusal(cls, error)
    return None
