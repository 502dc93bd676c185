"""Traces of METHODS2: three tiny tensors, and the weights of a rule after each step, in float64."""

import torch
from torch import Tensor, nn

DOUBLE = torch.float64
W0 = [[1, -2, 0.5], [0.25, 3, -1]]
TARGETS = ([[0.5, -1, 0.25], [1, 0.5, -0.75]], [[-0.25, 0.5, 1], [0.5, -1, 0.25]],
           [[1, 0.25, -0.5], [-0.75, 0.5, 1]])
H = [[1, 2, 0.5], [3, 1, 2]]
VECTOR, VECTORS = [1, -2, 3], ([0.5, -1, 0.25], [-0.25, 0.5, 1], [1, 0.25, -0.5])


def steps(make, start=W0, fed=None, count=3):
    """The weight after each step of `make([weight])`, and the optimizer. Step t has the gradient
    fed[t], without it that of sum(H (W - TARGETS[t])^2) / 2 ("problem Q")."""
    w = nn.Parameter(torch.tensor(start, dtype=DOUBLE))
    optimizer, weights = make([w]), []
    for t in range(count):
        def closure(t=t):
            a = torch.tensor((fed or TARGETS)[t], dtype=DOUBLE)
            w.grad = a if fed else torch.tensor(H, dtype=DOUBLE) * (w.detach() - a)
            return w.detach().sum()

        optimizer.step(closure)
        weights.append(w.detach().clone())
    return weights, optimizer


def numbers(text: str) -> Tensor:
    """The numbers of a trace, flat."""
    return torch.tensor([float(word) for word in text.split()], dtype=DOUBLE)


def differs(weights: Tensor, text: str) -> float:
    """The largest difference from a trace of ten decimals."""
    return float((weights.flatten() - numbers(text)).abs().max())
