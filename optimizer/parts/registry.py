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

PACKAGE = __name__.split(".")[0]  # "optimizer" here, "ars_optim" where it is installed

# Constructor arguments that `build_optimizer` fills in; a configuration sets the others.
GIVEN_BY_CODE = ("params", "base", "model", "names")


def exported(name: str) -> type[Optimizer]:
    """Our class of that name. Raises AttributeError where there is none."""
    stem = {_key(stem): stem for stem in _own()}.get(_key(name))
    if stem is None or (cls := optimizer_class(stem)).__name__ != name:
        raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
    return cls


def available_optimizers() -> list[str]:
    """Every name that `optimizer_class` knows: our files, and torch.optim's in snake case."""
    return sorted({*_own(), *_torch()})


def optimizer_class(name: str) -> type[Any]:
    """The class behind a name, case, hyphens and underscores ignored, or behind "package:Class".

    Our own files come before torch.optim's classes of the same name. Raises ValueError for an
    unknown name, and for a package or class that is not there.
    """
    if ":" in name:
        return library_class(*name.split(":", 1))
    key = _key(name)
    own = {_key(stem): stem for stem in _own()}
    if key in own:
        module = importlib.import_module(f"{PACKAGE}.{own[key]}")
        return getattr(module, module.__all__[0])
    library = {_key(stem): cls for stem, cls in _torch().items()}
    if key not in library:
        raise ValueError(f"unknown optimizer {name!r}; available: "
                         f"{', '.join(available_optimizers())}, or package:Class")
    return library[key]


def is_wrapper(cls: type[Optimizer]) -> bool:
    """Whether the class goes around another optimizer: its first argument is `base`."""
    return next(iter(inspect.signature(cls).parameters)) == "base"


def build_optimizer(settings: dict, model: nn.Module,
                    gradient_filter: GradientFilter | None = None) -> Optimizer:
    """Build the optimizer of an `[optimizer]` table for the trainable parameters of `model`.

    settings: `name` and that class's keywords; for a matrix rule also `routing` and the table
    `adamw` for the parameters off the matrix track, with tables in it for roles among them (given
    either, any class becomes the matrix rule beside an AdamW); every other table is a wrapper, the
    first one innermost, in the order of parts/wrapper.py. A class that has an argument `model`, or
    `names`, is given it.
    gradient_filter: as `parts.filtered.with_filter` takes it, for the innermost rule.
    Raises ValueError for an unknown name, a bad value, a class without a rate or one whose rate
    AdamW cannot share, wrappers in a wrong order, TypeError for an unknown keyword.
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
        raise ValueError(f"{cls.__name__} has no lr, by which schedules and records go")
    if gradient_filter is not None:
        optimizer = with_filter(optimizer, gradient_filter)
    for wrapper, table in zip(wrappers, tables.values(), strict=True):
        optimizer = wrapper(optimizer, **_with_model(wrapper, table, model))
    return optimizer


def _require_rate_of_its_own(classes: list[type[Optimizer]], groups: list[dict]) -> None:
    """Raise ValueError where AdamW would share a rate that is no step size of AdamW's kind: 0.5 or
    more by default, as Prodigy's and D-Adaptation's 1, which multiplies the rate that they find;
    Scion's, which is the decay too; what a class of ours says in `lr_is`, as Hyperball's angle."""
    alone = all("lr" in group for group in groups if group.get("track") == "adamw")
    for cls in () if alone else classes:
        default = getattr(inspect.signature(cls).parameters.get("lr"), "default", None)
        means = getattr(cls, "lr_is", "step and decay at once" if "scion" in cls.__name__.lower()
                        else f"{default} by default" if isinstance(default, float | int)
                        and default >= 0.5 else "")
        if means:
            raise ValueError(f"{cls.__name__}'s lr ({means}) is no rate for AdamW: state "
                             "[optimizer.adamw] lr for the parameters off the matrix track")


def _with_model(cls: type[Optimizer], settings: dict, model: nn.Module) -> dict:
    """`settings`, and the model, or the names of its parameters, for a class that asks for them;
    arrays are tuples where the class has a tuple."""
    parameters = inspect.signature(cls).parameters
    settings = {key: tuple(value) if isinstance(value, list) and key in parameters
                and isinstance(parameters[key].default, tuple) else value
                for key, value in settings.items()}
    given = {"model": model, "names": {p: name for name, p in model.named_parameters()}}
    return settings | {key: given[key] for key in given.keys() & parameters.keys()}


def _fused(cls: type[Optimizer], params: list, settings: dict) -> Optimizer:
    """`cls` for tensors or groups of them, with its fused kernel, where it has one, may use it and
    the settings ask for no other.

    Adagrad's is left out: in torch 2.11 it does not support CUDA.
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
    """torch.optim's classes by snake-case name: RMSprop -> rmsprop, AdamW -> adamw. SparseAdam,
    which takes sparse gradients alone, is not among them."""
    classes = [value for value in vars(torch.optim).values() if inspect.isclass(value)
               and issubclass(value, Optimizer)
               and value not in (Optimizer, torch.optim.SparseAdam)]
    return {re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", c.__name__).lower(): c for c in classes}


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
