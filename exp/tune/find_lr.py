"""Learning-rate range test, Smith 2015, arXiv 1506.01186, smoothed as fastai's finder does.

python -m exp.tune.find_lr --config FILE [--set TABLE.KEY=VALUE] [--low R] [--high R] [--steps N]

Each rate, from low to high by equal factors, trains one batch. Losses are smoothed by s <- b s +
(1 - b) loss with b = 0.98, and divided by 1 - b^i at rate i. The ramp ends when the smoothed loss
exceeds 4 times its minimum. Two rates are suggested: where the smoothed loss falls most steeply
over log lr, and a tenth of the rate at its minimum. Look at the curve: Adam's momenta and weight
decay make it depend on --steps, and rules that orthogonalize do not diverge as SGD does. The
config's schedule is not used.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exp.harness.arguments import BAD_INPUT, COMPLETED

BETA, DIVERGED = 0.98, 4.0


@dataclass(frozen=True)
class Curve:
    """Losses over rates, up to the end of the ramp."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest over log lr, by central differences;
        nan where it never falls."""
        slopes = {rate: after - before for rate, before, after in zip(
            self.rates[1:], self.smoothed, self.smoothed[2:], strict=False)}
        best = min(slopes, key=lambda rate: slopes[rate], default=math.nan)
        return best if slopes and slopes[best] < 0 else math.nan

    @property
    def tenth_of_lowest(self) -> float:
        """A tenth of the rate at which the smoothed loss is lowest."""
        return self.rates[self.smoothed.index(min(self.smoothed))] / 10 if self.rates else math.nan


def ramp(step: Callable[[float], float], low: float, high: float, count: int) -> Curve:
    """Return the curve of at most `count` rates from low to high; it ends before a loss that has
    diverged or is not finite. step(lr): take a step at this rate and return the loss before it."""
    curve, average = Curve([], [], []), 0.0
    for i in range(count):
        rate = low * (high / low) ** (i / max(count - 1, 1))
        loss = step(rate)
        average = BETA * average + (1 - BETA) * loss
        smoothed = average / (1 - BETA ** (i + 1))
        if not math.isfinite(loss) or curve.smoothed and smoothed > DIVERGED * min(curve.smoothed):
            break
        for values, value in zip((curve.rates, curve.losses, curve.smoothed),
                                 (rate, loss, smoothed), strict=True):
            values.append(value)
    return curve


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit status: 0, or 2 for bad input; then nothing is written.
    """
    options = parse(arguments)
    from data import DataError
    from exp.harness.errors import ConfigError

    try:
        curve = of_config(options)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    write(curve, options.output, options.config.stem)
    print(f"rate at the steepest fall of the loss: {curve.steepest:.3g}; a tenth of the rate at "
          f"the lowest loss: {curve.tenth_of_lowest:.3g}; {len(curve.rates)} rates up to "
          f"{(curve.rates or [math.nan])[-1]:.3g}; written to {options.output}")
    return COMPLETED


def of_config(options: argparse.Namespace) -> Curve:
    """Return the ramp of a config's optimizer on its training batches. The rates of all parameter
    groups keep their ratio to the first one's. Raises ConfigError for invalid settings or rates."""
    from exp.harness.build import build
    from exp.harness.config import load_settings
    from exp.harness.errors import ConfigError
    from exp.harness.task import task_named
    from exp.harness.toml import read_toml
    from exp.theory.training import batches
    from optimizer.parts.base import set_mode

    if not 0 < options.low < options.high < math.inf or options.steps < 2:
        raise ConfigError("--low, --high and --steps need 0 < low < high and steps >= 2, got "
                          f"{options.low:g}, {options.high:g}, {options.steps}")
    try:
        task = task_named(str(read_toml(options.config).get("experiment", {}).get("task")))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    run = build(load_settings(options.config, options.set, task), task)
    source, groups = batches(run), run.optimizer.param_groups
    initial = [float(group["lr"]) for group in groups]
    if not initial[0] > 0:
        raise ConfigError("[optimizer] lr must be > 0: the rates of all groups are scaled from it")
    run.model.train()
    set_mode(run.optimizer, "train")

    def step(rate: float) -> float:
        for group, lr in zip(groups, initial, strict=True):
            group["lr"] = rate * lr / initial[0]
        return float(run.optimizer.step(run.objective.on(next(source))))

    return ramp(step, options.low, options.high, options.steps)


def write(curve: Curve, path: Path, title: str) -> None:
    """Write the curve as a PNG."""
    from exp.report.canvas import curves

    path.parent.mkdir(parents=True, exist_ok=True)
    curves(path, {title: {"loss of a batch": (curve.rates, curve.losses),
                          "smoothed": (curve.rates, curve.smoothed)}},
           xlabel="learning rate", ylabel="training loss", xscale="log")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options. Exits for --help and for invalid options."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.tune.find_lr", description="Run the learning-rate range test.")
    parser.add_argument("--config", type=Path, required=True, help="the experiment, a TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                        help="override one setting; repeatable")
    parser.add_argument("--low", type=float, default=1e-7, help="lowest rate (default: 1e-7)")
    parser.add_argument("--high", type=float, default=10.0, help="highest rate (default: 10)")
    parser.add_argument("--steps", type=int, default=100,
                        help="number of rates, one batch each (default: 100)")
    parser.add_argument("--output", type=Path, default=Path("outputs/find_lr.png"), metavar="PNG",
                        help="figure of the curve (default: outputs/find_lr.png)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
