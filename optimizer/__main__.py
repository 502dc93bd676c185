"""The table of all optimizers, the update rule and arguments of one, or which classes of an
installed library a config can name.

python -m optimizer [NAME | --library PACKAGE]
"""

import argparse
import importlib
import inspect
import sys

from . import available_optimizers, optimizer_class
from .parts.compatibility import card


def table() -> str:
    """One line for each optimizer: name, evaluations a step, state tensors, source, defaults."""
    rows = [("name", "evaluations", "state", "source", "defaults")]
    for name in available_optimizers():
        cls = optimizer_class(name)
        module = importlib.import_module(cls.__module__)
        cost = getattr(module, "COST", {})
        source = (module.__doc__ or "").split("\n")[0].split(": ")[0]
        if not cls.__module__.startswith(f"{__package__}."):
            source = "torch.optim"
        rows.append((name, f"{cost.get('gradient_evaluations', '')}",
                     f"{cost.get('state_tensors', '')}", source, _defaults(cls)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths,
                     strict=False)), row[4]]).rstrip() for row in rows)


def describe(name: str) -> str:
    """The docstring and the signature of one optimizer. Raises ValueError for an unknown name."""
    cls = optimizer_class(name)
    return f"{cls.__name__}{inspect.signature(cls)}\n\n{inspect.getdoc(cls)}"


def _defaults(cls: type) -> str:
    parameters = inspect.signature(cls).parameters.values()
    return ", ".join(f"{p.name}={p.default}" for p in parameters
                     if p.default is not p.empty and p.default is not None)


def main() -> int:
    """Print what was asked for; the exit status, 2 for an unknown name or package."""
    parser = argparse.ArgumentParser(prog="python -m optimizer")
    parser.add_argument("name", nargs="?", help="an optimizer's name; all of them without it")
    parser.add_argument("--library", metavar="PACKAGE",
                        help='take steps with every class of a library, as "PACKAGE:Class" would')
    options = parser.parse_args()
    try:
        if options.library:
            print(card(options.library))
        else:
            print(describe(options.name) if options.name else table())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
