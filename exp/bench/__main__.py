"""What optimizers cost, ours beside torch's and the libraries', interleaved in one process.

python -m exp.bench [steps] [polar] [training] [instruments] [sharding] [--rounds N] [--full]
                    [--clock wall|thread] [--output DIR]
"""

import argparse
import json
from pathlib import Path

import torch

from exp.bench import instruments, polar, report, sharding, steps, training
from exp.bench.timing import CLOCKS
from exp.harness.facts import device_name, instruction_set, version_of

PARTS = ("steps", "polar", "training", "instruments", "sharding")
PACKAGES = ("torch", "pytorch_optimizer", "heavyball")


def facts(device: torch.device, clock: str) -> dict:
    """Device, threads, clock and versions: what the numbers depend on."""
    return {"device": device.type, "processor": device_name(device), "clock": clock,
            "threads": torch.get_num_threads(),
            "versions": {name: version_of(name) for name in PACKAGES}}


def write(path: Path, known: dict, results: dict) -> None:
    """Write what was measured, and on what, as JSON."""
    content = {"facts": known, "results": results}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure the parts asked for, write <part>.json each, then the report of all there are."""
    parser = argparse.ArgumentParser(prog="python -m exp.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART",
                        help=f"of {PARTS}; default: all but sharding, which is for idle CPUs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--full", action="store_true",
                        help="training: the models of the paper, in a file of their own")
    parser.add_argument("--output", type=Path, default=Path("outputs/paper/bench"))
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Peers orthogonalize in bfloat16, which a CPU has in hardware or emulates: two worlds.
    cpu = "cpu-bf16" if "bf16" in instruction_set() else "cpu"
    options.output.mkdir(parents=True, exist_ok=True)
    for part in options.parts or PARTS[:-1]:
        name = "training-full" if part == "training" and options.full else part
        kind = cpu if part == "sharding" or device.type == "cpu" else device.type
        path = options.output / f"{name}_{kind}.json"
        arguments = (options.rounds, options.clock, device)
        if part == "training":
            found = {}
            for config, rows in training.measure(*arguments, options.full):
                found[config] = rows
                write(path, facts(device, options.clock), found)
        elif part == "sharding":
            write(path, facts(device, options.clock), sharding.measure(options.rounds))
        else:
            modules = {"steps": steps, "polar": polar, "instruments": instruments}
            write(path, facts(device, options.clock), modules[part].measure(*arguments))
    report.write(options.output)
    print((options.output / "bench.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
