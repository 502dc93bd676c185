"""What optimizers cost, ours beside torch's and the libraries', interleaved in one process.

python -m exp.bench [steps] [polar] [training] [instruments] [sharding] [--render] [--rounds N]
                    [--full] [--clock wall|thread] [--output DIR]
python -m exp.bench smoke    a minute on a new device: what fails there, or waits for the host
"""

import sys
from collections.abc import Iterator, Sequence

from exp.bench.options import BY_DEFAULT, parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

import torch

from exp.bench import instruments, page, polar, sharding, smoke, steps, training
from exp.harness.arguments import BAD_INPUT, COMPLETED, FAILED
from exp.harness.facts import device_name, instruction_set, version_of
from exp.report.jsonfile import write_json

PACKAGES = ("torch", "pytorch_optimizer", "heavyball")


def facts(device: torch.device, clock: str) -> dict:
    """Device, threads, clock and versions: what the numbers depend on."""
    return {"device": device.type, "processor": device_name(device), "clock": clock,
            "threads": torch.get_num_threads(),
            "versions": {name: version_of(name) for name in PACKAGES}}


def results(part: str, rounds: int, clock: str, device: torch.device, full: bool) -> Iterator[dict]:
    """What a part has measured so far, the last time completely."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts asked for, write <part>_<kind>.json each, then the page of all there are;
    the exit status: 0, 1 where smoke found a problem, 2 for bad arguments or a damaged file."""
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Peers orthogonalize in bfloat16, which a CPU has in hardware or emulates: two worlds.
    cpu = "cpu-bf16" if "bf16" in instruction_set() else "cpu"
    problems = {}
    for part in [] if options.render else options.parts or BY_DEFAULT:
        name = "training-full" if part == "training" and options.full else part
        kind = cpu if part == "sharding" or device.type == "cpu" else device.type
        for measured in results(part, options.rounds, options.clock, device, options.full):
            write_json(options.output / f"{name}_{kind}.json",
                       {"facts": facts(device, options.clock), "results": measured}, depth=4)
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
