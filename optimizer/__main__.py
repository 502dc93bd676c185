"""Print the table of all optimizers, the update rule and arguments of one, or which optimizer
classes of an installed library a config can name.

python -m optimizer [NAME | --library PACKAGE]
"""

import importlib
import inspect
import json
import sys
from pathlib import Path

from .parts.arguments import parse

if __name__ == "__main__":
    parse()  # handles --help and unknown options before torch is imported

from . import available_optimizers, optimizer_class
from .parts.compatibility import card

BOARDS = Path(__file__).parents[1] / "outputs" / "paper" / "arena"  # exists in a checkout only


def table() -> str:
    """Return one line per optimizer: name, gradient evaluations per step, state tensors per
    parameter, source, what it is tested against, boards of `exp.tune`, default arguments."""
    rows, boards = [("name", "evaluations", "state", "source", "tested against", "boards",
                     "defaults")], read_boards()
    for name in available_optimizers():
        cls = optimizer_class(name)
        module = importlib.import_module(cls.__module__)
        cost = getattr(module, "COST", {})
        source = (module.__doc__ or "").split("\n")[0].split(": ")[0]
        tested = getattr(module, "TESTED_AGAINST", "the table of invariants")
        if not cls.__module__.startswith(f"{__package__}."):
            source, tested = "torch.optim", ""
        rows.append((name, f"{cost.get('gradient_evaluations', '')}",
                     f"{cost.get('state_tensors', '')}", source, tested,
                     ", ".join(sorted(board for board, names in boards.items() if name in names)),
                     _defaults(cls)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths,
                     strict=False)), row[-1]]).rstrip() for row in rows)


def read_boards(folder: Path = BOARDS) -> dict[str, set[str]]:
    """Map each board to the rules and wrappers of its arms, named as in `available_optimizers`.

    Empty where there are no boards, as in the installed package. Unreadable files are skipped."""
    known, boards = {name.replace("_", ""): name for name in available_optimizers()}, {}
    for path in folder.glob("*.json"):
        try:
            arms = json.loads(path.read_text(encoding="utf-8"))["arms"].values()
            tables = [arm["optimizer"] for arm in arms]
            names = {name for table in tables for name in (
                table["name"], *(key for key, value in table.items()
                                 if isinstance(value, dict) and key != "adamw"))}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        plain = (name.lower().replace("-", "").replace("_", "") for name in names)
        boards[path.stem] = {known[name] for name in plain if name in known}
    return boards


def describe(name: str) -> str:
    """Return the signature and docstring of one optimizer. Raises ValueError for an unknown
    name."""
    cls = optimizer_class(name)
    return f"{cls.__name__}{inspect.signature(cls)}\n\n{inspect.getdoc(cls)}"


def _defaults(cls: type) -> str:
    parameters = inspect.signature(cls).parameters.values()
    return ", ".join(f"{p.name}={p.default}" for p in parameters
                     if p.default is not p.empty and p.default is not None)


def main() -> int:
    """Print the requested text; return the exit status, 2 for an unknown name or package."""
    options = parse()
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
