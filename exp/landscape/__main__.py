"""Plot trajectories of optimizers on test functions: figures, animations and tables.

python -m exp.landscape [--optimizers a,b] [--function rosenbrock|beale|himmelblau|quadratic|matrix]
                        [--render | --dry-run] [--steps N] [--output DIR]
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from exp.landscape.options import parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

import torch

from exp.harness.arguments import BAD_INPUT, COMPLETED
from exp.harness.recipes import changes, recipe
from exp.landscape.functions import FUNCTIONS
from exp.landscape.paths import CLOSE, COMMON_RATE, RATES, WRAPPED, Walk, best_walk, walk, walkers
from exp.landscape.pictures import animate, draw
from exp.report.forecast import forecast, total
from exp.report.jsonfile import require_json, write_json
from exp.report.tables import older_code, page, table
from optimizer import optimizer_class

SECONDS = 0.01  # per optimizer and step, over all rates, on one CPU core
DIGITS = 4  # significant digits of stored numbers
PAGE = Path(__file__).with_name("page.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 2 for bad arguments or damaged files."""
    options = parse(arguments)
    names = walkers() if options.optimizers == "all" else options.optimizers.split(",")
    unknown = [name for name in names if name not in walkers()]
    if unknown:
        print(f"error: {unknown[0]!r} cannot run on these functions; available: "
              f"{', '.join(walkers())}", file=sys.stderr)
        return BAD_INPUT
    if options.function not in (None, *FUNCTIONS):
        print(f"error: unknown function {options.function!r}; available: {', '.join(FUNCTIONS)}",
              file=sys.stderr)
        return BAD_INPUT
    torch.set_num_threads(1)
    functions = [options.function] if options.function else list(FUNCTIONS)
    times = {name: SECONDS * len(names) * options.steps for name in functions}
    if not options.render:
        print((forecast if options.dry_run else total)(times), flush=True)
    for name in [] if options.dry_run else functions:
        if not options.render:
            write_json(options.output / f"{name}.json", measure(name, names, options.steps), 2)
        try:
            render(options.output, name)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return BAD_INPUT
        print(f"written to {options.output}: {name}.png .gif .json .md")
    return COMPLETED


def measure(name: str, optimizers: Sequence[str], steps: int) -> dict:
    """Return, as JSON, the best trajectory of every optimizer and that at the common rate."""
    function = FUNCTIONS[name]
    modules = {optimizer_class(rule).__module__ for rule in (WRAPPED, *optimizers)}
    return {"function": name, "steps": steps,
            "recipes": {module: recipe(module) for module in sorted(modules | {"optimizer.parts"})
                        if module.startswith("optimizer.")},
            "best": [record(best_walk(function, optimizer, steps)) for optimizer in optimizers],
            "common": [record(walk(function, optimizer, COMMON_RATE, steps))
                       for optimizer in optimizers]}


def record(path: Walk) -> dict:
    """Return a trajectory as JSON; None for numbers that are not finite, and for no arrival."""
    return {"optimizer": path.optimizer, "lr": _rounded(path.lr), "final": _rounded(path.final),
            "arrival": path.arrival, "evaluations": path.evaluations,
            "points": [[_rounded(x), _rounded(y)] for x, y in path.points]}


def render(folder: Path, name: str) -> None:
    """Write the page, the figure and the animation from <name>.json.

    Raises ValueError for a missing or damaged file.
    """
    content = require_json(folder / f"{name}.json")
    function = FUNCTIONS[name]
    draw(folder / f"{name}.png", function, {
        f"each at its best learning rate, {content['steps']} steps": content["best"],
        f"all at learning rate {COMMON_RATE:.3g}": content["common"]})
    animate(folder / f"{name}.gif", function, content["best"])
    (folder / f"{name}.md").write_text(page_of(content), encoding="utf-8")


def page_of(content: dict) -> str:
    """Return the page of one function as Markdown."""
    name = content["function"]
    lines = [("", "best lr", "f at the end", "arrived at step", "gradient evaluations",
              f"f at the end, lr {COMMON_RATE:.3g}")]
    for best, common in zip(content["best"], content["common"], strict=True):
        lines.append((best["optimizer"], f"{best['lr']:g}", _shown(best["final"]), best["arrival"],
                      best["evaluations"], _shown(common["final"])))
    words = {"function": name, "title": name.capitalize(), "note": FUNCTIONS[name].note,
             "table": table(lines), "steps": content["steps"], "first": RATES[0], "last": RATES[-1],
             "count": len(RATES), "wrapped": WRAPPED, "close": CLOSE}
    text = PAGE.read_text(encoding="utf-8").format(**words)
    return page(text.rstrip(), older_code([changes(content.get("recipes", {}))]))


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.2e}"


if __name__ == "__main__":
    sys.exit(main())
