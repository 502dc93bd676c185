"""Walk optimizers over functions one can look at; pictures, animations and numbers.

python -m exp.landscape [--optimizers a,b] [--function rosenbrock|beale|himmelblau|quadratic|matrix]
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from exp.harness.arguments import BAD_INPUT, COMPLETED
from exp.landscape.functions import FUNCTIONS
from exp.landscape.paths import CLOSE, COMMON_RATE, RATES, WRAPPED, Walk, best_walk, walk, walkers
from exp.landscape.pictures import animate, draw
from exp.report.tables import markdown

OUTPUTS = Path("outputs/paper/landscape")
SHOWN = ("sgd", "adamw", "lion", "muon", "rmsuon", "ada_rmsuon", "ars2_neo", "soap")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, or 2 for bad arguments."""
    options = _parser().parse_args(arguments)
    names = walkers() if options.optimizers == "all" else options.optimizers.split(",")
    unknown = [name for name in names if name not in walkers()]
    if unknown:
        print(f"error: {unknown[0]!r} cannot walk here; these can: {', '.join(walkers())}",
              file=sys.stderr)
        return BAD_INPUT
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in [options.function] if options.function else FUNCTIONS:
        function = FUNCTIONS[name]
        best = [best_walk(function, optimizer, options.steps) for optimizer in names]
        common = [walk(function, optimizer, COMMON_RATE, options.steps) for optimizer in names]
        draw(options.output / f"{name}.png", function,
             {f"each at its best learning rate, {options.steps} steps": best,
              f"all at learning rate {COMMON_RATE:.3g}": common})
        animate(options.output / f"{name}.gif", function, best)
        numbers = {"function": name, "steps": options.steps,
                   "best": [summary(found) for found in best],
                   "common": [summary(found) for found in common]}
        (options.output / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n",
                                                     encoding="utf-8")
        (options.output / f"{name}.md").write_text(render(numbers), encoding="utf-8")
        print(f"written to {options.output}: {name}.png .gif .json .md")
    return COMPLETED


def summary(found: Walk) -> dict:
    """What the table says of a walk; null for what is not a number or did not happen."""
    return {"optimizer": found.optimizer, "lr": float(f"{found.lr:.4g}"),
            "final": float(f"{found.final:.4g}") if math.isfinite(found.final) else None,
            "arrival": found.arrival, "evaluations": found.evaluations}


def render(numbers: dict) -> str:
    """The page of one function, from its JSON."""
    function = FUNCTIONS[numbers["function"]]
    lines = [("", "best lr", "f at the end", "arrived at step", "gradient evaluations",
              f"f at the end, lr {COMMON_RATE:.3g}")]
    for best, common in zip(numbers["best"], numbers["common"], strict=True):
        lines.append((best["optimizer"], f"{best['lr']:g}", _number(best["final"]),
                      "–" if best["arrival"] is None else str(best["arrival"]),
                      str(best["evaluations"]), _number(common["final"])))
    return "\n\n".join([
        f"# {numbers['function'].capitalize()}", function.note + ".",
        f"![{numbers['function']}]({numbers['function']}.png)",
        f"![animation]({numbers['function']}.gif)", markdown(lines),
        f"{numbers['steps']} steps in float64 from the white square, no weight decay, everything "
        f"else default; wrappers around {WRAPPED}. Best of {len(RATES)} rates from {RATES[0]:g} to "
        f"{RATES[-1]:.3g}, by f at the end. Arrived: f stays below {CLOSE:g} of its start. A plane "
        "is a 1 x 2 matrix to the matrix rules: its orthogonalization is its direction, so they "
        "take steps of one length and end where that length lets them; the matrix quadratic is "
        "the one where they can show more."]) + "\n"


def _number(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.2e}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m exp.landscape",
                                     description="Optimizers over functions one can look at.")
    parser.add_argument("--optimizers", default=",".join(SHOWN), metavar="A,B",
                        help=f"names, or all (default: {','.join(SHOWN)})")
    parser.add_argument("--function", choices=FUNCTIONS, help="default: all of them")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
