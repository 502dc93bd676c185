"""Cost of optimizer steps and training: ours, torch's and the libraries', timed in one process.

python -m exp.bench [steps] [polar] [training] [instruments] [sharding] [--render | --dry-run]
                    [--rounds N] [--full] [--clock wall|thread] [--output DIR]
python -m exp.bench smoke    minutes on a new device: what fails there or makes the host wait
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from exp.bench.options import BY_DEFAULT, PUBLISHED, parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

import torch

from exp.bench import instruments, page, polar, sharding, smoke, steps, training
from exp.harness.arguments import BAD_INPUT, COMPLETED, FAILED
from exp.harness.facts import device_name, instruction_set, version_of
from exp.report.forecast import forecast, total
from exp.report.jsonfile import read_json, write_json

PACKAGES = ("torch", "pytorch_optimizer", "heavyball")


def facts(device: torch.device, clock: str) -> dict:
    """Device, threads, clock and versions, on which the measurements depend."""
    return {"device": device.type, "processor": device_name(device), "clock": clock,
            "threads": torch.get_num_threads(),
            "versions": {name: version_of(name) for name in PACKAGES}}


def results(part: str, rounds: int, clock: str, device: torch.device, full: bool) -> Iterator[dict]:
    """Yield the results of a part: what has been measured so far, at last all of it."""
    if part == "training":
        rows: dict = {}
        for config, of_config in training.measure(rounds, clock, device, full):
            rows[config] = of_config
            yield rows
    elif part == "sharding":
        yield sharding.measure(rounds)
    elif part == "smoke":
        yield smoke.measure(device)
    else:
        modules = {"steps": steps, "polar": polar, "instruments": instruments}
        yield modules[part].measure(rounds, clock, device)


def file_name(part: str, full: bool, device: torch.device) -> str:
    """Name of a part's file. CPUs with bfloat16 in hardware have a name of their own, because the
    libraries' optimizers orthogonalize in bfloat16, which other CPUs emulate."""
    cpu = "cpu-bf16" if "bf16" in instruction_set() else "cpu"
    kind = cpu if part == "sharding" or device.type == "cpu" else device.type
    return f"{'training-full' if part == 'training' and full else part}_{kind}.json"


def seconds(folder: Path, file: str, rounds: int) -> float | None:
    """Expected seconds of a part, from the file in `folder` or the published one; None if neither
    has its time."""
    for path in (folder / file, PUBLISHED / file):
        known = (read_json(path) or {}).get("facts", {})
        if "seconds" in known:
            return known["seconds"] / known["rounds"] * rounds
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts asked for, write <part>_<kind>.json for each, then the page of all files.
    Returns the exit status: 0, 1 if smoke found a problem, 2 for bad arguments or a damaged file.
    """
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = {part: file_name(part, options.full, device)
             for part in ([] if options.render else options.parts or BY_DEFAULT)}
    times = {part: seconds(options.output, file, options.rounds) for part, file in files.items()}
    if options.dry_run:
        print(forecast(times))
        return COMPLETED
    problems = {}
    if files:
        print(total(times), flush=True)
    for part, file in files.items():
        started = time.perf_counter()
        for measured in results(part, options.rounds, options.clock, device, options.full):
            took = {"rounds": options.rounds, "seconds": round(time.perf_counter() - started)}
            write_json(options.output / file, {"facts": facts(device, options.clock) | took,
                                               "results": measured}, depth=4)
        if part == "smoke":
            problems = smoke.problems(measured)
            print("\n".join(f"{subject}: {problem}" for subject, problem in problems.items()))
    try:
        page.write(options.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"written to {options.output / 'bench.md'}")
    return FAILED if problems else COMPLETED


if __name__ == "__main__":
    sys.exit(main())
