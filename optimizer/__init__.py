"""Optimizers: one algorithm per file, found by its file name; the folder is the registry.

`from optimizer import Muon` imports torch and optimizer/muon.py; `import optimizer` alone imports
neither.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .parts.registry import (
        GIVEN_BY_CODE,
        available_optimizers,
        build_optimizer,
        is_wrapper,
        optimizer_class,
        parameter_groups,
        routing_table,
    )

__all__ = ["GIVEN_BY_CODE", "available_optimizers", "build_optimizer", "is_wrapper",
           "optimizer_class", "parameter_groups", "routing_table"]


def __getattr__(name: str) -> Any:
    """Return a function of parts/registry.py, or an optimizer class of this package by its name.

    Raises AttributeError for an unknown name."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .parts import registry

    return getattr(registry, name) if name in __all__ else registry.exported(name)
