"""Celo2's 347 numbers, trained by antithetic evolution strategies on two tiny tasks.

python -m exp.papers.survey.meta_train [--minutes N] [--output FILE]

A generation draws PAIRS directions of 347 normal numbers and trains a small model with the mean
plus and minus SIGMA times each, all on one task and one seed, at that task's rate; tasks alternate.
The fitness of a member is the log of AdamW's loss at the end over its own. Its utility is its rank
among the members, from -1/2 (worst) to 1/2 (the reference does not change ranks: it is for the
log); the mean moves by

    RATE / (2 PAIRS SIGMA)  sum over members of  utility * (its direction)

(Salimans et al. 2017, arXiv 1703.03864, without Adam: the mean is all there is to remember.)

It begins where the rule is Muon without Nesterov at RMS lr: two units of each layer carry both
signs of the average of gradients at 0.9, the others see random mixtures of the features and go
nowhere yet. CIFAR-10 takes no part, so that it can show whether what was learned carries over.

Directions and seeds are functions of seed and generation alone: a run that was killed goes on from
the file, to the bit. The file is what `optimizer/celo2.json` is.
"""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from exp.papers.survey.options import parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

import torch
from torch import Tensor

from exp.harness.arguments import BAD_INPUT, COMPLETED
from exp.harness.facts import device_name, short_commit, version_of
from exp.harness.schedule import Schedule
from exp.report.forecast import forecast
from exp.report.jsonfile import read_json, write_json
from exp.theory.sweeps import WARMUP, adamw
from exp.theory.training import built, examples, steps
from optimizer.celo2 import SHAPES, Celo2

PAIRS, SIGMA, RATE = 4, 0.03, 0.005
STEPS, EXAMPLES = 50, 128  # of a training; that its loss is measured on
FIRST_SEED = 1000  # of the trainings: 1, 2, ... are for measurements
# Task -> the rates of Celo2 and of AdamW: the best of a grid in factors of 2, Celo2 at its start.
TASKS = {"grokking": (2**-6, 2**-5), "wikitext2": (2**-6, 2**-6)}
MOMENTUM = 3  # which of the features is the average at 0.9


def start(seed: int) -> list[float]:
    """The numbers that make the rule Muon."""
    generator = torch.Generator().manual_seed(seed)
    w1, w2, w3 = (torch.randn(shape, generator=generator, dtype=torch.float64) / shape[1] ** 0.5
                  for shape in SHAPES[::2])
    w1[:2], w2[:2], w3[:] = 0, 0, 0
    w1[0, MOMENTUM], w1[1, MOMENTUM] = 1, -1
    w2[0, 0] = w2[1, 1] = 1
    w3[0, 0], w3[0, 1] = 1, -1
    return torch.cat([torch.cat([w.flatten(), w.new_zeros(len(w))]) for w in (w1, w2, w3)]).tolist()


def celo2(lr: float, **keys: object) -> dict:
    """Celo2, one rate and one decay for matrices and the rest."""
    return {"name": "celo2", "lr": lr, "weight_decay": 0.1, **keys}


def final_loss(table: dict, task: str, seed: int, network: Tensor | None = None) -> float:
    """Mean loss (nats) over EXAMPLES training examples after STEPS steps on the task's small scale,
    the rate falling to zero; infinite if it diverged. network: numbers for Celo2."""
    run = built(table, seed, task, "small")
    if network is not None:
        assert isinstance(run.optimizer, Celo2)
        run.optimizer.network = network
    rates = Schedule(run.optimizer, 1, STEPS, "linear", warmup_epochs=WARMUP)
    rates.set_lr(0)
    for done in steps(run, STEPS):
        rates.set_lr(done)
    with torch.no_grad():
        loss = float(run.objective.loss_fn(run.model, *examples(run, EXAMPLES))[0])
    return loss if math.isfinite(loss) else math.inf


def advanced(state: dict) -> dict:
    """The state one generation later."""
    number, mean = state["generation"], torch.tensor(state["trained"], dtype=torch.float64)
    task = list(TASKS)[number % len(TASKS)]
    lr, adamw_lr = TASKS[task]
    generator = torch.Generator().manual_seed((state["seed"] << 32) + number)
    half = torch.randn(PAIRS, len(mean), generator=generator, dtype=torch.float64)
    directions = torch.cat([half, -half])
    seed = FIRST_SEED + number
    losses = [final_loss(celo2(lr), task, seed, mean + SIGMA * d) for d in directions]
    mean += RATE / (len(directions) * SIGMA) * utilities(losses) @ directions
    reference = final_loss(adamw(adamw_lr), task, seed)
    ratio = sum(math.log(loss / reference) for loss in losses) / len(losses)
    return {**state, "generation": number + 1, "trained": mean.tolist(),
            "log_ratios": [*state["log_ratios"], round(ratio, 4) if math.isfinite(ratio) else None]}


def utilities(losses: Sequence[float]) -> Tensor:
    """The rank of each loss, from -1/2 for the highest to 1/2 for the lowest."""
    order = torch.tensor(losses, dtype=torch.float64).argsort(descending=True, stable=True)
    return order.argsort().double() / (len(losses) - 1) - 0.5


def read(path: Path, seed: int) -> dict:
    """The state in a file, or that before the first generation. Raises ValueError for a damaged
    file, or one of another seed."""
    numbers = start(seed)
    state = read_json(path) or {"seed": seed, "generation": 0, "seconds": 0.0, "log_ratios": [],
                                "start": numbers, "trained": numbers}
    if state.get("seed") != seed or len(state.get("trained", ())) != len(numbers):
        raise ValueError(f"{path} is not a file of seed {seed}")
    return state


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 2 for a file that is damaged or of another seed."""
    options = parse(arguments)
    try:
        state = read(options.output, options.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    seconds = 60 * options.minutes
    if options.dry_run:
        each = state["seconds"] / state["generation"] if state["generation"] else None
        count = f"about {seconds / each:.0f} generations" if each else "generations"
        print(forecast({f"{count} after {state['generation']}": seconds}))
        return COMPLETED
    made = {"device": device_name(torch.device("cpu")), "torch": version_of("torch"),
            "commit": short_commit()}
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        state = {**advanced(state), **made}
        state["seconds"] = round(state["seconds"] + time.perf_counter() - begun, 1)
        write_json(options.output, state, depth=1)
        print(f"generation {state['generation']}: log ratio to AdamW {state['log_ratios'][-1]}",
              flush=True)
    return COMPLETED


if __name__ == "__main__":
    sys.exit(main())
