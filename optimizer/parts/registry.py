"""Optimizers: one algorithm per file, found by its file name; the folder is the registry."""

import importlib
import inspect
import pkgutil
import re
import sys
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from .filtered import GradientFilter, with_filter
from .joint import Joint
from .layout import may_fuse
from .library import library_class, wants_use_muon
from .matrix import MatrixOptimizer
from .split import parameter_groups, routing_table, split

__all__ = ["GIVEN_BY_CODE", "available_optimizers", "build_optimizer", "is_wrapper",
           "optimizer_class", "parameter_groups", "routing_table"]

PACKAGE = __name__.split(".")[0]  # "optimizer" in a checkout, "ars_optim" when installed

# Constructor arguments that `build_optimizer` fills in; a config sets the others.
GIVEN_BY_CODE = ("params", "base", "model", "names")


def exported(name: str) -> type[Optimizer]:
    """Return this package's class called `name`. Raises AttributeError for an unknown name."""
    stem = {_key(stem): stem for stem in _own()}.get(_key(name))
    if stem is None or (cls := optimizer_class(stem)).__name__ != name:
        raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
    return cls


def available_optimizers() -> list[str]:
    """Return every name that `optimizer_class` accepts: this package's files, and torch.optim's
    classes in snake case."""
    return sorted({*_own(), *_torch()})


def optimizer_class(name: str) -> type[Any]:
    """Return the class for a name (case, hyphens and underscores ignored) or "package:Class".

    A file of this package takes precedence over a torch.optim class of the same name. Raises
    ValueError for an unknown name, package or class.
    """
    if ":" in name:
        return library_class(*name.split(":", 1))
    key = _key(name)
    files = {_key(stem): stem for stem in _own()}
    if key in files:
        module = importlib.import_module(f"{PACKAGE}.{files[key]}")
        return getattr(module, module.__all__[0])
    library = {_key(stem): cls for stem, cls in _torch().items()}
    if key not in library:
        raise ValueError(f"unknown optimizer {name!r}; available: "
                         f"{', '.join(available_optimizers())}, or package:Class")
    return library[key]


def is_wrapper(cls: type[Optimizer]) -> bool:
    """Whether the class wraps another optimizer: its first argument is named `base`."""
    return next(iter(inspect.signature(cls).parameters)) == "base"


def build_optimizer(settings: dict, model: nn.Module,
                    gradient_filter: GradientFilter | None = None) -> Optimizer:
    """Build the optimizer of an `[optimizer]` table for the trainable parameters of `model`.

    settings: `name` and the keywords of that class. `routing` and the table `adamw` belong to a
    matrix rule: `adamw` has the settings of the parameters off the matrix track, with a subtable
    per role. With either of them any other class takes the matrices, beside an AdamW for the rest.
    Every other table is a wrapper, innermost first, in the order of parts/wrapper.py. A constructor
    argument `model` or `names` is filled in.
    gradient_filter: applied at the innermost rule, see `parts.filtered.with_filter`.
    Raises ValueError for an unknown name, an invalid value, a class without lr or with an lr that
    AdamW cannot share, and wrappers in the wrong order; TypeError for an unknown keyword.
    """
    settings = dict(settings)
    cls = optimizer_class(settings.pop("name"))
    tables = {key: settings.pop(key) for key in list(settings) if isinstance(settings[key], dict)}
    routing = settings.pop("routing", None)
    adamw = tables.pop("adamw", None)
    wrappers = [optimizer_class(name) for name in tables]
    if issubclass(cls, MatrixOptimizer):
        groups = parameter_groups(model, routing or "role", **(adamw or {}))
        _require_rate_of_its_own([cls, *wrappers], groups)
        optimizer: Optimizer = cls(groups, **_with_model(cls, settings, model))
    elif routing is not None or adamw is not None:
        groups = parameter_groups(model, routing or "role", **(adamw or {}))
        matrices, rest = ([group for group in groups if group["track"] == track]
                          for track in ("matrix", "adamw"))
        _require_rate_of_its_own([cls, *wrappers], rest)
        shared = {key: settings[key] for key in ("lr", "weight_decay") if key in settings}
        parts: list[tuple[type, list, dict]] = [
            (cls, matrices, _with_model(cls, settings, model)), (AdamW, rest, shared)]
        optimizer = Joint(*(_fused(*part) for part in parts if part[1]))
    elif next(iter(inspect.signature(cls).parameters)) == "model":
        optimizer = cls(**_with_model(cls, settings, model))
    elif wants_use_muon(cls):
        halves = zip(split(model), (True, False), strict=True)
        optimizer = cls([{"params": params, "use_muon": flag} for params, flag in halves if params],
                        **_with_model(cls, settings, model))
    else:
        params = [p for p in model.parameters() if p.requires_grad]
        optimizer = _fused(cls, params, _with_model(cls, settings, model))
    if any("lr" not in group for group in optimizer.param_groups):
        raise ValueError(f"{cls.__name__} has no lr, which schedules and records need")
    if gradient_filter is not None:
        optimizer = with_filter(optimizer, gradient_filter)
    for wrapper, table in zip(wrappers, tables.values(), strict=True):
        optimizer = wrapper(optimizer, **_with_model(wrapper, table, model))
    return optimizer


def _require_rate_of_its_own(classes: list[type[Optimizer]], groups: list[dict]) -> None:
    """Raise ValueError where AdamW would share an lr that is not a step size in AdamW's sense: a
    default of 0.5 or more (Prodigy and D-Adaptation multiply the rate they estimate by it), Scion's
    (also its decay), and classes of this package that set `lr_is` (Hyperball's is an angle)."""
    alone = all("lr" in group for group in groups if group.get("track") == "adamw")
    for cls in () if alone else classes:
        default = getattr(inspect.signature(cls).parameters.get("lr"), "default", None)
        means = getattr(cls, "lr_is", "step and decay at once" if "scion" in cls.__name__.lower()
                        else f"{default} by default" if isinstance(default, float | int)
                        and default >= 0.5 else "")
        if means:
            raise ValueError(f"{cls.__name__}'s lr ({means}) is not a learning rate for AdamW: "
                             "set [optimizer.adamw] lr for the parameters off the matrix track")


def _with_model(cls: type[Optimizer], settings: dict, model: nn.Module) -> dict:
    """Add the model, or its parameters' names, to `settings` where the class has that argument;
    convert a list to a tuple where the argument's default is a tuple."""
    parameters = inspect.signature(cls).parameters
    settings = {key: tuple(value) if isinstance(value, list) and key in parameters
                and isinstance(parameters[key].default, tuple) else value
                for key, value in settings.items()}
    given = {"model": model, "names": {p: name for name, p in model.named_parameters()}}
    return settings | {key: given[key] for key in given.keys() & parameters.keys()}


def _fused(cls: type[Optimizer], params: list, settings: dict) -> Optimizer:
    """Build `cls` for tensors or groups. Use its fused kernel if it has one, if all tensors are
    dense and if the settings choose no other implementation.

    Adagrad's fused kernel is not used: in torch 2.11 it does not support CUDA.
    """
    chosen = settings.get("fused") is not None or settings.get("foreach") is not None
    excluded = settings.get("capturable") or settings.get("differentiable")
    tensors = [p for part in params for p in (part["params"] if isinstance(part, dict) else [part])]
    excluded = excluded or cls is torch.optim.Adagrad or not may_fuse(tensors)
    if "fused" in inspect.signature(cls).parameters and not chosen and not excluded:
        settings = {**settings, "fused": True}
    return cls(params, **settings)


def _own() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(sys.modules[PACKAGE].__path__)
            if not module.ispkg and module.name != "__main__"]


def _torch() -> dict[str, type[Optimizer]]:
    """Map snake-case names to torch.optim's classes (RMSprop -> rmsprop, AdamW -> adamw), except
    SparseAdam, which accepts sparse gradients only."""
    classes = [value for value in vars(torch.optim).values() if inspect.isclass(value)
               and issubclass(value, Optimizer)
               and value not in (Optimizer, torch.optim.SparseAdam)]
    return {re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", c.__name__).lower(): c for c in classes}


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
