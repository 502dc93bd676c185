"""Train Celo2's 347 weights by antithetic evolution strategies on two tiny tasks.

python -m exp.papers.survey.meta_train [--minutes N] [--output FILE]

A generation draws PAIRS random directions of 347 standard normal numbers and trains a small model
with the mean plus and minus SIGMA times each direction, all on one task, with one seed and that
task's learning rate. Tasks alternate between generations. A member's utility is the rank of its
final loss among the members, from -1/2 (worst) to 1/2. The mean moves by

    RATE / (2 PAIRS SIGMA)  sum over members of  utility * (its direction)

(Salimans et al. 2017, arXiv 1703.03864, but without Adam, so the mean is the only state). AdamW's
final loss is measured for the log only, which stores the mean log ratio.

The initial weights make the rule Muon without Nesterov at RMS lr: two units of each layer carry the
positive and negative parts of the gradient average at 0.9. The other units get random mixtures of
the features and do not affect the output yet. CIFAR-10 is held out to test generalization.

Directions and seeds depend on seed and generation only, so an interrupted run continues from its
file bit for bit. The file has the format of `optimizer/celo2.json`.
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
STEPS, EXAMPLES = 50, 128  # steps of a training run; examples on which its loss is measured
FIRST_SEED = 1000  # of the training runs; seeds 1, 2, ... are for measurements
# Task -> rates of Celo2 (with its initial weights) and AdamW, the best of a grid in factors of 2.
TASKS = {"grokking": (2**-6, 2**-5), "wikitext2": (2**-6, 2**-6)}
MOMENTUM = 3  # index of the feature that is the gradient average at 0.9


def start(seed: int) -> list[float]:
    """Return the 347 initial weights, with which the rule is Muon."""
    generator = torch.Generator().manual_seed(seed)
    w1, w2, w3 = (torch.randn(shape, generator=generator, dtype=torch.float64) / shape[1] ** 0.5
                  for shape in SHAPES[::2])
    w1[:2], w2[:2], w3[:] = 0, 0, 0
    w1[0, MOMENTUM], w1[1, MOMENTUM] = 1, -1
    w2[0, 0] = w2[1, 1] = 1
    w3[0, 0], w3[0, 1] = 1, -1
    return torch.cat([torch.cat([w.flatten(), w.new_zeros(len(w))]) for w in (w1, w2, w3)]).tolist()


def celo2(lr: float, **keys: object) -> dict:
    """Celo2 with one learning rate and one weight decay for all parameters."""
    return {"name": "celo2", "lr": lr, "weight_decay": 0.1, **keys}


def final_loss(table: dict, task: str, seed: int, network: Tensor | None = None) -> float:
    """Return the mean loss (nats) over EXAMPLES training examples after STEPS steps at the task's
    small scale, with a rate that decays to zero; infinity if the run diverged. network: weights for
    Celo2, (347,)."""
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
    """Return the state after one more generation."""
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
    """Return the rank of each loss, scaled from -1/2 for the highest to 1/2 for the lowest."""
    order = torch.tensor(losses, dtype=torch.float64).argsort(descending=True, stable=True)
    return order.argsort().double() / (len(losses) - 1) - 0.5


def read(path: Path, seed: int) -> dict:
    """Read the state from a file, or return the initial state if there is none. Raises ValueError
    for a damaged file or one of another seed."""
    numbers = start(seed)
    state = read_json(path) or {"seed": seed, "generation": 0, "seconds": 0.0, "log_ratios": [],
                                "start": numbers, "trained": numbers}
    if state.get("seed") != seed or len(state.get("trained", ())) != len(numbers):
        raise ValueError(f"{path} is damaged or of another seed than {seed}")
    return state


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 2 for a damaged file or another seed."""
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
    provenance = {"device": device_name(torch.device("cpu")), "torch": version_of("torch"),
                  "commit": short_commit()}
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        state = {**advanced(state), **provenance}
        state["seconds"] = round(state["seconds"] + time.perf_counter() - begun, 1)
        write_json(options.output, state, depth=1)
        print(f"generation {state['generation']}: log ratio to AdamW {state['log_ratios'][-1]}",
              flush=True)
    return COMPLETED


if __name__ == "__main__":
    sys.exit(main())
