"""Curvature of the training loss on a batch, by autograd's Hessian-vector products and scipy."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from exp.harness.objective import frozen_statistics

TRACE_PRODUCTS = 20  # Hessian-vector products per Hutchinson estimate
TOLERANCE = 1e-2  # relative, of the top eigenvalue
RHO = 0.05  # of the SAM sharpness


class _Flat(nn.Module):
    """A model whose logits are flattened to (examples, classes)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).flatten(0, -2)


def hessian(model: nn.Module, batch: Sequence[Tensor], params: Sequence[Tensor]) -> LinearOperator:
    """The Hessian of the mean cross entropy of a batch (inputs, targets) over `params`.

    Targets of -100 are ignored. One product is one backward pass through the graph of the
    gradient, which is kept (curvlinops' forward-mode products do not support Qwen3's SiLU).
    """
    inputs, targets = batch
    loss = F.cross_entropy(_Flat(model)(inputs), targets.flatten())
    gradients = torch.autograd.grad(loss, list(params), create_graph=True)
    sizes = [p.numel() for p in params]

    def product(vector: np.ndarray) -> np.ndarray:
        v = torch.from_numpy(np.asarray(vector, dtype=np.float64).reshape(-1))
        parts = [part.view_as(p).to(p) for part, p in zip(v.split(sizes), params, strict=True)]
        rows = torch.autograd.grad(gradients, list(params), parts, retain_graph=True,
                                   allow_unused=True, materialize_grads=True)
        return torch.cat([row.flatten().double().cpu() for row in rows]).numpy()

    return LinearOperator((sum(sizes), sum(sizes)), product, dtype=np.float64)


def curvature(model: nn.Module, batch: Sequence[Tensor], params: Sequence[Tensor],
              seed: int = 0) -> dict[str, float]:
    """{"top_eigenvalue", "trace", "sam_sharpness"} of the loss on a batch.

    top_eigenvalue: by Lanczos, nan if that fails; trace: Hutchinson's estimate.
    sam_sharpness: f(W + rho g / ||g||) - f(W), rho = 0.05, over `params` together. Weights,
    gradients, running statistics and the random state are restored.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(), frozen_statistics(norms), sdpa_kernel(SDPBackend.MATH):
        torch.manual_seed(seed)
        operator = hessian(model, batch, params)
        size = operator.shape[0]
        try:
            top = float(eigsh(operator, k=1, which="LA", tol=TOLERANCE,
                              v0=rng.standard_normal(size), return_eigenvectors=False)[0])
        except ArpackError:  # no convergence, or a Hessian that is not finite
            top = float("nan")
        signs = rng.choice((-1.0, 1.0), (TRACE_PRODUCTS, size))
        trace = float(np.mean([sign @ operator.matvec(sign) for sign in signs]))
        return {"top_eigenvalue": top, "trace": trace,
                "sam_sharpness": sam_sharpness(model, batch, params)}


def sam_sharpness(model: nn.Module, batch: Sequence[Tensor], params: Sequence[Tensor],
                  rho: float = RHO) -> float:
    """The increase of the loss (nats) at distance rho along the gradient; weights are restored."""
    inputs, targets = batch
    flat = _Flat(model)
    loss = F.cross_entropy(flat(inputs), targets.flatten())
    gradients = torch.autograd.grad(loss, list(params))
    length = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
    before = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, g in zip(params, gradients, strict=True):
            p.add_(g * (rho / length.clamp_min(1e-12)))
        risen = F.cross_entropy(flat(inputs), targets.flatten())
        for p, b in zip(params, before, strict=True):
            p.copy_(b)
    return float(risen - loss.detach())
