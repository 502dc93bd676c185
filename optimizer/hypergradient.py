"""Hypergradient descent, Baydin et al. 2017, arXiv 1703.04782: gradient descent on lr itself."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parts import checks
from .parts.base import Closure
from .parts.delta import Delta, matrices
from .parts.distributed.collective import total

__all__ = ["Hypergradient"]

SEARCH_SPACE = {"beta": (1e-3, 0.3, "log")}
COST = {"gradient_evaluations": 1, "state_tensors": 1}
TESTED_AGAINST = "plain numpy"

Kind = Literal["multiplicative", "additive"]


class Hypergradient(Delta):
    """Multiplies each group's lr by a factor r >= 0, initially 1, updated before each step:

        r <- r (1 + beta h / (||g|| ||u||))    multiplicative (eq. 9)
        r <- r + beta h / lr                   additive (eq. 6): lr r grows by beta h

    h = <g, u> is the inner product of the gradient and the direction u of the last step, over all
    parameters of a group. The step uses lr r, where the schedule sets lr. Deviation: the authors'
    Adam changes the rate once per tensor within a step.

    Cost: no additional gradient evaluation; 1 state tensor per parameter; one host synchronization
    per group and step.
    Raises ValueError for an invalid argument, and if `base` has a weight decay or complex
    parameters.
    """

    stage, state_keys = "learning rate", ("direction",)

    def __init__(self, base: Optimizer, beta: float = 0.02, kind: Kind = "multiplicative") -> None:
        checks.non_negative(beta=beta)
        checks.choice(Kind, kind=kind)
        if kind == "multiplicative" and beta >= 1:
            raise ValueError(f"beta must be < 1 for the multiplicative form, got {beta!r}: r could "
                             "become 0 and stay 0")
        super().__init__(base, "all")
        self.refuse_maximize()
        self.beta, self.kind = beta, kind
        self.rates: list = []  # the groups' lr, saved while lr r replaces them during a step
        self.keep_scalars(**{f"factor_{index}": 1.0 for index in range(len(self.param_groups))})

    @property
    def diagnostics(self) -> dict[str, float]:
        """Diagnostics of `base`, and the factor r of each group."""
        return {**super().diagnostics, **self.scalars}

    @torch.compiler.disable(recursive=False)
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step of `base` at the adapted rate; return what `base` returns."""
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, self.rates, strict=False):
                group["lr"] = rate
            self.rates = []

    def after_gradient(self) -> None:
        """Copy the weights, and adapt the rate at the first gradient of the step."""
        super().after_gradient()
        if not self.rates:
            self.rates = [group["lr"] for group in self.param_groups]
            self.adapt()

    @torch.compiler.disable
    @torch.no_grad()
    def adapt(self) -> None:
        """Update r and replace each group's lr by lr r."""
        for index, group in enumerate(self.param_groups):
            pairs = [(matrices(p.grad).double(), self.state[p]["direction"].double())
                     for p in group["params"]  # in float64, since squares overflow in float32
                     if p in self.before and "direction" in self.state.get(p, {})]
            products = [torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()])
                        for a, b in pairs]
            zeros = torch.zeros(3, dtype=torch.float64, device=self.parameters[0].device)
            h, gg, uu = total(torch.stack(products).sum(0) if products else zeros).tolist()
            key, lr = f"factor_{index}", float(group["lr"])
            r = self.scalars.setdefault(key, 1.0)
            if self.kind == "multiplicative":
                r *= 1 + self.beta * (h / (gg * uu) ** 0.5 if gg * uu > 0 else 0.0)
            elif lr:
                r += self.beta * h / lr
            self.scalars[key] = max(r, 0.0)
            group["lr"] = group["lr"] * self.scalars[key]

    def move(self, p: Tensor, w: Tensor, u: Tensor, group: dict) -> Tensor:
        """Store u, unless lr r is 0, which gives no u; return the weights of `base` unchanged."""
        if group["lr"] or "direction" not in self.state[p]:
            self.state[p]["direction"] = u
        return matrices(p.detach())
