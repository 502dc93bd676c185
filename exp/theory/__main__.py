"""Run the experiments that test papers' statements, and write verdicts.

python -m exp.theory [STATEMENT ...] [--render | --list | --dry-run] [--seeds N] [--output DIR]
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from exp.theory.options import PUBLISHED, parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

import torch

from exp.harness.arguments import BAD_INPUT, COMPLETED
from exp.harness.facts import device_name, short_commit, version_of
from exp.report.forecast import forecast, total
from exp.report.rows import read_rows, write_rows
from exp.theory import statement, training

SUMMARY = Path("docs/theory.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 2 for bad arguments or damaged files."""
    options = parse(arguments)
    names = options.names or list(statement.statement_files())
    try:
        unknown = [name for name in names if name not in statement.statement_files()]
        if unknown:
            raise ValueError(f"unknown statement {unknown[0]!r}; available: "
                             f"{', '.join(statement.statement_files())}")
        if options.list:
            print("\n".join(f"{name:24}{statement.says(name)}" for name in names))
        elif options.dry_run:
            print(forecast(durations(options.output, names, options.seeds)))
        elif options.render:
            measured = [name for name in names if name in options.names
                        or (options.output / f"{name}.json").exists()]
            if not measured:
                raise ValueError(f"{options.output} has no measured statement; --output names the "
                                 f"folder, {PUBLISHED} for the published ones")
            render(options.output, measured)
        else:
            print(total(durations(options.output, names, options.seeds)), flush=True)
            measure(options.output, names, list(range(1, options.seeds + 1)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return COMPLETED


def durations(folder: Path, names: Sequence[str], seeds: int) -> dict[str, float | None]:
    """Estimate the seconds of each statement from the records in `folder`, or else the published
    ones, in proportion to the number of seeds. None without a record."""
    seconds = {}
    for name in names:
        path = next((path for of in (folder, PUBLISHED) if (path := of / f"{name}.json").exists()),
                    None)
        record = read_rows(path)[1] if path else {}
        seconds[name] = (record["seconds"] / len(record["seeds"]) * seeds if "seconds" in record
                         else None)
    return seconds


def measure(folder: Path, names: Sequence[str], seeds: list[int]) -> None:
    """Measure statements one after the other; write each as soon as it is measured."""
    provenance = {"device": device_name(torch.device("cpu")), "torch": version_of("torch"),
                  "commit": short_commit(),  # read now: it is the commit of the loaded code
                  "seeds": seeds}
    for name in names:
        for used in training.USED.values():
            used.clear()
        started = time.perf_counter()
        rows = list(statement.measure(statement.statement(name), seeds))
        used = {key: dict(used) for key, used in training.USED.items() if used}
        timing = {"seconds": round(time.perf_counter() - started)}
        write_rows(folder / f"{name}.json", rows, provenance | timing | used)
        render(folder, [name])


def render(folder: Path, names: Sequence[str]) -> None:
    """Write pages and figures from the JSON in `folder`, and docs/theory.md for the published
    folder."""
    for name in names:
        print(f"{name}: {statement.render(folder, name)}, written to {folder / name}.md")
    if folder == PUBLISHED:
        SUMMARY.write_text(statement.summary(folder), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
