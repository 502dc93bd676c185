"""The experiment behind each statement of the paper's theory, and a verdict.

python -m exp.theory [STATEMENT ...] [--seeds N] [--output DIR]
"""

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

import exp.theory
from exp.harness.cli import BAD_INPUT, COMPLETED
from exp.harness.facts import device_name, short_commit, version_of

OUTPUT = Path("outputs/paper/theory")
SUMMARY = Path("docs/theory.md")


def statements() -> dict[str, ModuleType]:
    """Name -> module with SAYS, SOURCE, RULE, measure(seeds), judge(found), figure(found) in a few
    words, render(found), and plot(found, path) where a curve says more."""
    paths = [found.name for found in pkgutil.walk_packages(exp.theory.__path__, "exp.theory.")]
    modules = {path.rsplit(".", 1)[1]: importlib.import_module(path) for path in paths
               if not path.endswith("__")}
    return {name: modules[name] for name in sorted(modules) if hasattr(modules[name], "SAYS")}


def page(name: str, content: dict) -> str:
    """The page of one statement, from its JSON."""
    module = statements()[name]
    facts = content["facts"]
    commit = f"commit {facts['commit']}" if "commit" in facts else "commit not recorded"
    return "\n\n".join([
        f"# {module.SAYS}", f"Source: {module.SOURCE}. `python -m exp.theory {name}`.",
        f"**{module.judge(content['found'])}**. The rule, written before the run: {module.RULE}",
        module.render(content["found"]),
        f"{facts['device']}, torch {facts['torch']}; {commit}; seeds {facts['seeds']}."]) + "\n"


def summary(folder: Path) -> str:
    """All statements that were run, one line each."""
    lines = ["# The paper's theory, tested", "", "| statement | verdict | figure | page |",
             "|---|---|---|---|"]
    for name, module in statements().items():
        path = folder / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))["found"]
            lines.append(f"| {module.SAYS} | **{module.judge(found)}** | {module.figure(found)} | "
                         f"[{name}](../outputs/paper/theory/{name}.md) |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, or 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m exp.theory",
                                     description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="STATEMENT",
                        help=f"default: all of {', '.join(statements())}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in statements()]
    if unknown:
        print(f"error: no statement {unknown[0]!r}; there are: {', '.join(statements())}",
              file=sys.stderr)
        return BAD_INPUT
    options.output.mkdir(parents=True, exist_ok=True)
    seeds = list(range(1, options.seeds + 1))
    commit = short_commit()  # of the code that is loaded, whatever happens while it runs
    for name in options.names or statements():
        found = statements()[name].measure(seeds)
        content = {"found": found, "facts": {
            "device": device_name(torch.device("cpu")), "torch": version_of("torch"),
            "commit": commit, "seeds": seeds}}
        path = options.output / f"{name}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(page(name, content), encoding="utf-8")
        if hasattr(statements()[name], "plot"):
            statements()[name].plot(found, path.with_suffix(".png"))
        print(f"{name}: {statements()[name].judge(found)}, written to {path.with_suffix('.md')}")
    if options.output == OUTPUT:
        SUMMARY.write_text(summary(OUTPUT), encoding="utf-8")
    return COMPLETED


if __name__ == "__main__":
    sys.exit(main())
