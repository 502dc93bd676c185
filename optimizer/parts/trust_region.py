"""A trust region along the direction of a matrix rule: adapt the step length to the agreement
between the actual and the predicted change of the loss.

Conn, Gould & Toint 2000; stochastic: STORM, Chen et al. 2018, arXiv 1504.04231. Secant steps:
Barzilai & Borwein 1988; stochastic: Tan et al. 2016, arXiv 1605.04131. Learning rates from the next
gradient along the last step: Baydin et al. 2018, arXiv 1703.04782.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from . import checks
from .base import Closure, grads_of, inner_step
from .distributed.collective import total
from .matrix import MatrixOptimizer
from .sharpness import perturbed

Rule = Literal["none", "ratio", "curvature", "slope", "secant"]
Control = Literal["gain", "line"]
JUMP = 2.0  # largest factor by which control "line" changes r in one update
AVERAGE = 0.9  # decay of the moving averages from which rho is computed
SMOOTHING = 0.3  # weight of a new secant curvature in the moving average of its logarithm
FLAT = 1e-3  # predicted reductions below this share of ||g|| ||s|| are ignored


class TrustRegion(MatrixOptimizer):
    """Scales the steps of a matrix rule by one factor r, adapted to the loss; see TRMuon.

    Subclasses give `directions(params, group)`: tensors u for which -lr u is the step at r = 1.
    Raises ValueError for an invalid value.
    """

    compares_losses = True  # with the reduction that the gradient predicts

    def __init__(self, params: Iterable, defaults: dict, rule: str, interval: int, gain: float,
                 target: float, accept: float, control: str, radius_range: tuple[float, float]
                 ) -> None:
        checks.non_negative(gain=gain, target=target, accept=accept)
        checks.at_least(1, interval=interval)
        checks.choice(Rule, rule=rule)
        checks.choice(Control, control=control)
        if not 0 < radius_range[0] < 1 < radius_range[1]:
            raise ValueError("radius_range must be (low, high) with 0 < low < 1 < high, got "
                             f"{radius_range!r}")
        self.rule, self.interval = rule, interval
        self.control, self.radius_range = control, tuple(radius_range)
        self.gain, self.target, self.accept = gain, target, accept
        super().__init__(params, defaults)
        self.keep_scalars(step=0, radius=1.0, predicted=0.0, found=0.0, rejected=0, rho=1.0,
                          kappa=0.0, kappa_ratio=0.0, slope=0.0, bend=0.0, promised=0.0)

    def directions(self, params: list[Tensor], group: dict) -> list[Tensor]:
        """Return the direction of each matrix, in its shape; update the state of the rule."""
        raise TypeError(f"{type(self).__name__} must define directions()")

    @property
    def diagnostics(self) -> dict[str, float]:
        """radius: r (for "secant" its mean); rho: its average; kappa: curvature along the last
        probed step from the gradients at its ends (for "secant" the mean over tensors);
        kappa_ratio: the same from its actual reduction; rejected: number of steps undone."""
        return {key: float(self.scalars[key])
                for key in ("radius", "rho", "kappa", "kappa_ratio", "rejected")}

    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; return the loss before it, None without a closure.

        Raises ValueError if the rule needs a closure in this step and there is none."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step(closure, loss)
        return loss

    @torch.compiler.disable  # it branches on numbers of the host
    def _step(self, closure: Closure | None, loss: Tensor | None) -> None:
        moves = [(group, params, self.directions(params, group))
                 for group in self.param_groups if group["track"] == "matrix"
                 if (params := self.with_gradient(group))]
        if self.rule == "slope":
            self._look_back([p for _, params, _ in moves for p in params])
        due = self.scalars["step"] % self.interval == 0 and total(_count(moves)) > 0
        probes = due and self.rule in ("ratio", "curvature")
        self.scalars["step"] += 1
        if not probes or self._probe(moves, closure, loss):
            for group, params, updates in moves:
                lengths = [self.scalars["radius"]] * len(params)
                if self.rule == "secant":
                    lengths = self._secant_lengths(group, params, updates)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                if any(length != 1 for length in lengths):
                    torch._foreach_mul_(updates, lengths)
                torch._foreach_add_(params, updates, alpha=-group["lr"])
            if due and self.rule == "slope":
                self._remember(moves)
        if self.adamw is not None:
            inner_step(self.adamw)

    def _probe(self, moves: list, closure: Closure | None, loss: Tensor | None
               ) -> bool:
        """Evaluate loss and gradient at the end of the step, adapt r; return whether to take it."""
        params = [p for _, group_params, _ in moves for p in group_params]
        gradients = grads_of(params)
        if closure is None or loss is None:
            if any(g.any() for g in gradients):
                raise ValueError(f'rule "{self.rule}" needs a closure: use step(closure)')
            return True  # a zero gradient predicts no reduction, so there is nothing to probe
        steps = [u * (-self.scalars["radius"] * group["lr"])
                 for group, _, updates in moves for u in updates]
        after, gradients_after = self._evaluate_at(params, steps, closure)
        slope = _dot(gradients, steps)
        bend = _dot(gradients_after, steps) - slope
        lengths = [_norm(gradients), _norm(steps)]
        predicted, actual = -slope, float(loss) - float(after)
        square = max(lengths[1] ** 2, torch.finfo(torch.float64).tiny)
        self.scalars["kappa"] = bend / square
        self.scalars["kappa_ratio"] = 2 * (predicted - actual) / square
        if not predicted > FLAT * lengths[0] * lengths[1]:
            return True  # no predicted reduction on this batch: no information about r
        if self.accept > 0 and not actual >= self.accept * predicted:
            self.scalars["rejected"] += 1
            self._halve()
            return False
        self._adapt(predicted, actual if self.rule == "ratio" else predicted - bend / 2)
        return True

    def _evaluate_at(self, params: list[Tensor], steps: list[Tensor], closure: Closure
                     ) -> tuple[Tensor, list[Tensor]]:
        """Return the loss and the gradients at params + steps; restore weights and gradients,
        also after an exception."""
        every = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in every]
        try:
            for p in every:
                p.grad = None  # the closure must not write into the saved gradients
            with perturbed(params, list(steps)), torch.enable_grad():
                loss = closure()
            return loss, [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        finally:
            for p, gradient in zip(every, gradients, strict=True):
                p.grad = gradient

    def _remember(self, moves: list) -> None:
        """Store the step just taken (including r and lr), and its predicted reduction if it is
        large enough. The state has a step from the first one on, as torch's checkpoints need."""
        params = [p for _, group_params, _ in moves for p in group_params]
        steps = [u * -group["lr"] for group, _, updates in moves for u in updates]
        gradients = grads_of(params)
        promised = -_dot(gradients, steps)
        if promised > FLAT * _norm(gradients) * _norm(steps):
            self.scalars["promised"] = promised
        for p, step in zip(params, steps, strict=True):
            self.state[p]["last_step"] = step

    def _look_back(self, params: list[Tensor]) -> None:
        """Adapt r to the slope at the end of the stored step, once."""
        promised, self.scalars["promised"] = self.scalars["promised"], 0.0
        if not promised:
            return
        params = [p for p in params if "last_step" in self.state[p]]
        steps = [self.state[p]["last_step"] for p in params]
        bend, length = promised + _dot(grads_of(params), steps), _norm(steps)
        for step in steps:
            step.zero_()
        if length:  # 0 if no parameter of the stored step has a gradient now
            self.scalars["kappa"] = bend / length**2
            self._adapt(promised, promised - bend / 2)

    def _adapt(self, predicted: float, reduction: float) -> None:
        scalars = self.scalars
        if not math.isfinite(reduction):
            self._halve()
            return
        radius = scalars["radius"]
        for key, value in (("predicted", predicted), ("found", reduction),
                           ("slope", predicted / radius),
                           ("bend", 2 * (predicted - reduction) / radius**2)):
            scalars[key] = AVERAGE * scalars[key] + (1 - AVERAGE) * value
        # All averages start at 0; this bias cancels in the ratios.
        scalars["rho"] = scalars["found"] / scalars["predicted"]
        if self.control == "gain":
            factor = math.exp(self.gain * (scalars["rho"] - self.target))
        else:
            best = 2 * (1 - self.target) * scalars["slope"]
            factor = JUMP if scalars["bend"] <= 0 else best / scalars["bend"] / radius
            factor = min(max(factor, 1 / JUMP), JUMP)
        low, high = self.radius_range
        scalars["radius"] = min(max(radius * factor, low), high)

    def _halve(self) -> None:
        self.scalars["radius"] = max(self.radius_range[0], self.scalars["radius"] / 2)

    def _secant_lengths(self, group: dict, params: list[Tensor], updates: list[Tensor]
                        ) -> list[float]:
        """Return min(1, a / (kappa lr E)) of each tensor, at least the lower end of radius_range;
        1 while kappa is unknown."""
        lengths, curvatures = [], []
        for p, update in zip(params, updates, strict=True):
            entry = self.state[p]
            average = entry["exp_avg"] / (1 - group["betas"][0] ** entry["step"])
            if (entry["step"] - 1) % self.interval == 0:
                _measure_secant(entry, p, average)
            length = group["lr"] * float(update.norm())  # lr E
            kappa = entry.setdefault("kappa", 0.0)  # from the first step on, as for checkpoints
            if kappa == 0 or length == 0:
                lengths.append(1.0)
                continue
            curvatures.append(kappa)
            slope = float((average * update).sum()) / float(update.norm())
            lengths.append(min(max(slope / (kappa * length), self.radius_range[0]), 1.0))
        if curvatures:  # with several processes these are means over this process's share
            self.scalars["kappa"] = sum(curvatures) / len(curvatures)
            self.scalars["radius"] = sum(lengths) / len(lengths)
        return lengths


def _measure_secant(entry: dict, p: Tensor, average: Tensor) -> None:
    """Update the smoothed curvature `kappa` of a tensor from its last snapshot; take a new one."""
    if "snapshot" in entry:
        s, y = p - entry["snapshot"], average - entry["snapshot_average"]
        product, square = float((s * y).sum()), float((s * s).sum())
        if product > 1e-8 * math.sqrt(square) * float(y.norm()) > 0:
            kappa = product / square
            old = entry.get("kappa") or kappa
            entry["kappa"] = old ** (1 - SMOOTHING) * kappa**SMOOTHING
    entry["snapshot"], entry["snapshot_average"] = p.clone(), average.clone()


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def _count(moves: list) -> Tensor:
    return _zero() + len(moves)


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    products = ((x.to(y.dtype) * y).sum(dtype=torch.float64) for x, y in zip(a, b, strict=True))
    return float(total(sum(products, _zero())))


def _norm(tensors: list[Tensor]) -> float:
    squares = sum((t.square().sum(dtype=torch.float64) for t in tensors), _zero())
    return float(total(squares)) ** 0.5
