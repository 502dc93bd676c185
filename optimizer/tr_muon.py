"""TR-Muon (a proposal of dmf-archive/ARS, worked out here): RMSuon's direction in a trust region.

Trust regions: Conn, Gould & Toint 2000; stochastic: STORM, Chen et al. 2018, arXiv 1504.04231.
Secant steps: Barzilai & Borwein 1988; stochastic: Tan et al. 2016, arXiv 1605.04131. Learning
rates from the next gradient along the last step: Baydin et al. 2018, arXiv 1703.04782.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from .parts import checks
from .parts.base import inner_step
from .parts.distributed.collective import total
from .parts.energy import EnergyScope
from .parts.matrix import MatrixOptimizer
from .parts.polar import Orthogonalizer
from .rmsuon import rmsuon_updates

__all__ = ["TRMuon"]

SEARCH_SPACE = {
    "lr": (1e-4, 3e-2, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.95], [0.9, 0.98], [0.9, 0.999]],
    "target": (0.5, 0.95, "linear"),
    "interval": [1, 4, 10],
}
COST = {"gradient_evaluations": 1.25, "state_tensors": 2}

Rule = Literal["none", "ratio", "curvature", "slope", "secant"]
Control = Literal["gain", "line"]
JUMP = 2.0  # the most that "line" changes r by at a time
AVERAGE = 0.9  # decay of the averages behind rho
SMOOTHING = 0.3  # share of a new secant curvature in the average of its logarithm
FLAT = 1e-3  # predicted reductions below this share of ||g|| ||s|| say nothing


class TRMuon(MatrixOptimizer):
    """RMSuon whose step is r times as long, r from how well a model of the loss fits.

        s = -r lr E O / ||O||_F            (RMSuon's step for r = 1, for all matrices together)
        pred = -<g, s>                     (what the gradient promises)
        "ratio"      ared = f(W) - f(W + s) on the same batch,  rho = avg(ared) / avg(pred)
        "curvature"  y = g(W + s) - g(W) on the same batch, rho = 1 - avg(<s, y>) / (2 avg(pred))
        "slope"      y = g(W + s) of the next batch - g(W), the same rho
        "gain"       r <- r exp(gain (rho - target))
        "line"       r <- 2 (1 - target) avg(pred / r) / avg(<s, y> / r^2), by at most a factor of 2

    On a quadratic all agree, and rho = 1/2 is the best length along s, rho = 1 far too short;
    "line" is the length at which rho is the target. r stays in radius_range, multiples of RMSuon's
    step. "ratio" and "curvature" take one more gradient evaluation on every interval-th step, the
    batch's noise in it cancelled by the difference; `accept` > 0 undoes such a step where ared <
    accept pred, and halves r. "slope" takes none: the gradient of the next step is that at the
    end of this one, from a batch that the step has not seen (a decayed weight is a little off);
    one step in `interval` is looked at. "secant" takes none either: of each tensor kappa =
    <s, y> / <s, s> over the last `interval` steps (Barzilai-Borwein's long step; y between
    averages of gradients, noise and all), the step no longer than a / kappa with the slope a =
    <m_hat, O> / ||O||_F. "none" is RMSuon bit for bit.

    r is one number for all matrices; the AdamW track is RMSuon's. The schedule acts on lr, not r.

    Cost: 1 + 1 / interval gradient evaluations a step ("none", "slope", "secant": 1), 2 state
    tensors a matrix ("slope": 3, "secant": 4), and a copy of the matrices within a step that
    evaluates. Raises ValueError where an evaluation is due and step was given no closure.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        ns_steps: int = 5,
        rule: Rule = "curvature",
        interval: int = 4,
        gain: float = 0.1,
        target: float = 0.75,
        accept: float = 0.0,
        control: Control = "line",
        radius_range: tuple[float, float] = (0.01, 100.0),
        energy_scope: EnergyScope = "matrix",
        orthogonalizer: Orthogonalizer = "keller",
    ) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay, gain=gain, target=target,
                            accept=accept)
        checks.pair_of_fractions(betas=betas)
        checks.at_least(1, ns_steps=ns_steps, interval=interval)
        checks.choice(Rule, rule=rule)
        checks.choice(Control, control=control)
        checks.choice(EnergyScope, energy_scope=energy_scope)
        checks.choice(Orthogonalizer, orthogonalizer=orthogonalizer)
        if not 0 < radius_range[0] < 1 < radius_range[1]:
            raise ValueError("radius_range must be two numbers above 0, one below 1 and one above "
                             f"it, got {radius_range!r}")
        self.rule, self.interval = rule, interval
        self.control, self.radius_range = control, tuple(radius_range)
        self.gain, self.target, self.accept = gain, target, accept
        super().__init__(params, {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
            "ns_steps": ns_steps, "energy_scope": energy_scope, "orthogonalizer": orthogonalizer})
        self.keep_scalars(step=0, radius=1.0, predicted=0.0, found=0.0, rejected=0, rho=1.0,
                          kappa=0.0, kappa_ratio=0.0, slope=0.0, bend=0.0, promised=0.0)

    @property
    def diagnostics(self) -> dict[str, float]:
        """radius r (its mean for "secant"), the averaged rho, the curvature along the last step
        looked at from the gradients at its ends (kappa; the mean one for "secant") and from its
        actual reduction (kappa_ratio), steps undone."""
        return {key: float(self.scalars[key])
                for key in ("radius", "rho", "kappa", "kappa_ratio", "rejected")}

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step; the loss before it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step(closure, loss)
        return loss

    @torch.compiler.disable  # it chooses by numbers that the host must see
    def _step(self, closure: Callable[[], Tensor] | None, loss: Tensor | None) -> None:
        moves = [(group, params, rmsuon_updates(self.state, params, group))
                 for group in self.param_groups if group["track"] == "matrix"
                 if (params := self.with_gradient(group))]
        if self.rule == "slope":
            self._look_back([p for _, params, _ in moves for p in params])
        due = self.scalars["step"] % self.interval == 0 and total(_count(moves)) > 0
        looks = due and self.rule in ("ratio", "curvature")
        self.scalars["step"] += 1
        if not looks or self._look(moves, closure, loss):
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

    def _look(self, moves: list, closure: Callable[[], Tensor] | None, loss: Tensor | None) -> bool:
        """Evaluate the loss and gradient at the end of the step, adapt r; whether to take it.

        Weights and gradients are left as they were."""
        if closure is None:
            raise ValueError(f'rule "{self.rule}" needs a closure: step(closure)')
        params = [p for _, group_params, _ in moves for p in group_params]
        steps = [u * (-self.scalars["radius"] * group["lr"])
                 for group, _, updates in moves for u in updates]
        every = [p for group in self.param_groups for p in group["params"]]
        gradients = {p: p.grad for p in every if p.grad is not None}
        before = [p.clone() for p in params]
        for p, step in zip(params, steps, strict=True):
            p.add_(step)
        for p in every:
            p.grad = None  # so that the closure cannot write into the gradients kept here
        with torch.enable_grad():
            after = closure()
        slope = _dot([gradients[p] for p in params], steps)
        bend = _dot([torch.zeros_like(p) if p.grad is None else p.grad for p in params],
                    steps) - slope
        for p, old in zip(params, before, strict=True):
            p.copy_(old)
        for p in every:
            p.grad = gradients.get(p)
        lengths = [_norm([gradients[p] for p in params]), _norm(steps)]
        predicted, actual = -slope, float(loss) - float(after)
        found = actual if self.rule == "ratio" else predicted - bend / 2
        square = max(lengths[1] ** 2, torch.finfo(torch.float64).tiny)
        self.scalars["kappa"] = bend / square
        self.scalars["kappa_ratio"] = 2 * (predicted - actual) / square
        if not predicted > FLAT * lengths[0] * lengths[1]:
            return True  # uphill or level on this batch: the model has nothing to say
        if self.accept > 0 and not actual >= self.accept * predicted:
            self.scalars["rejected"] += 1
            self._halve()
            return False
        self._adapt(predicted, found)
        return True

    def _remember(self, moves: list) -> None:
        """Keep the step just taken (r and lr in it) and what the gradient promised of it."""
        params = [p for _, group_params, _ in moves for p in group_params]
        steps = [u * -group["lr"] for group, _, updates in moves for u in updates]
        gradients = [p.grad for p in params]
        promised = -_dot(gradients, steps)
        if promised > FLAT * _norm(gradients) * _norm(steps):
            self.scalars["promised"] = promised
            for p, step in zip(params, steps, strict=True):
                self.state[p]["last_step"] = step

    def _look_back(self, params: list[Tensor]) -> None:
        """Adapt r to the slope that is left at the end of the step remembered, and forget it."""
        promised, self.scalars["promised"] = self.scalars["promised"], 0.0
        if not promised:
            return
        steps = [self.state[p].pop("last_step", None) for p in params]
        known = [(p.grad, step) for p, step in zip(params, steps, strict=True) if step is not None]
        left = -_dot([grad for grad, _ in known], [step for _, step in known])
        bend = promised - left
        self.scalars["kappa"] = bend / _norm([step for _, step in known]) ** 2
        self._adapt(promised, promised - bend / 2)

    def _adapt(self, predicted: float, found: float) -> None:
        scalars = self.scalars
        if not math.isfinite(found):
            self._halve()
            return
        radius = scalars["radius"]
        for key, value in (("predicted", predicted), ("found", found),
                           ("slope", predicted / radius),
                           ("bend", 2 * (predicted - found) / radius**2)):
            scalars[key] = AVERAGE * scalars[key] + (1 - AVERAGE) * value
        # All averages start at 0: what that takes from them cancels in the ratios.
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
        """min(1, a / (kappa lr E)) of each tensor, within the range; 1 while kappa is unknown."""
        found, curvatures = [], []
        for p, update in zip(params, updates, strict=True):
            entry = self.state[p]
            average = entry["exp_avg"] / (1 - group["betas"][0] ** entry["step"])
            if (entry["step"] - 1) % self.interval == 0:
                _measure_secant(entry, p, average)
            length = group["lr"] * float(update.norm())  # lr E
            kappa = entry.get("kappa")
            if kappa is None or length == 0:
                found.append(1.0)
                continue
            curvatures.append(kappa)
            slope = float((average * update).sum()) / float(update.norm())
            found.append(min(max(slope / (kappa * length), self.radius_range[0]), 1.0))
        if curvatures:  # with several processes, of this one's share
            self.scalars["kappa"] = sum(curvatures) / len(curvatures)
            self.scalars["radius"] = sum(found) / len(found)
        return found


def _measure_secant(entry: dict, p: Tensor, average: Tensor) -> None:
    """Update the smoothed curvature `kappa` of a tensor from its last snapshot, take a new one."""
    if "snapshot" in entry:
        s, y = p - entry["snapshot"], average - entry["snapshot_average"]
        product, square = float((s * y).sum()), float((s * s).sum())
        if product > 1e-8 * math.sqrt(square) * float(y.norm()) > 0:
            kappa = product / square
            old = entry.get("kappa", kappa)
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
