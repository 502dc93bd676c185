"""Is a diagonal Fisher matrix with orthogonalization equivalent to the full one? A test against the
exact Fisher matrix of a small network."""

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from data.cifar10 import cifar10
from exp.harness.diagnostics import cosine
from exp.report.evidence import sample
from exp.report.judgement import judge_above, judge_all
from exp.report.rows import Row, Rows
from exp.report.statistics import mean
from exp.theory.statement import Verdict
from exp.theory.sweeps import average
from optimizer import build_optimizer
from optimizer.parts.polar import orthogonalize

WITHDRAWN = "README 1.2 now calls it a hypothesis to be tested, not an identity"
POINTS = (10, 50, 200, 600)  # steps
EXAMPLES, BATCH, WIDTH = 2000, 100, 20
DAMPINGS = (0.01, 0.1, 1.0)  # over the mean eigenvalue
DECIDES, NEARLY = 0.1, 0.9
CHUNK = 250
DRIVER = "Adam"  # its weights form the trajectory; all rules take their steps at these weights
BETAS = [0.9, 0.99]
RULES: dict[str, dict] = {
    "SGD": {"name": "sgd", "momentum": 0.9, "dampening": 0.9},
    "Adam": {"name": "adam", "betas": BETAS},
    "Muon": {"name": "muon", "routing": "all", "momentum": 0.9, "nesterov": False},
    "AdaRMSuon": {"name": "ada_rmsuon", "routing": "all", "betas": BETAS, "weight_decay": 0.0},
    "K-FAC": {"name": "kfac", "routing": "all", "stat_decay": 0.99, "damping": 3e-4,
              "kl_clip": math.inf, "factor_interval": 1, "inverse_interval": 5},
    "Shampoo": {"name": "shampoo", "routing": "all", "momentum": 0.9, "beta2": 0.99},
    "SOAP": {"name": "soap", "routing": "all", "betas": BETAS, "shampoo_beta": 0.99,
             "precondition_frequency": 5, "weight_decay": 0.0},
}
LR = 1e-3
# Operators on the exact gradient g and the exact, damped Fisher matrix F, without averaging or
# noise. d is the diagonal of F.
IDEALS = {
    "g": lambda g, matrix, net: g,
    "g / d": lambda g, matrix, net: g / matrix.diagonal(),
    "g / sqrt(d)": lambda g, matrix, net: g / matrix.diagonal().sqrt(),
    "msign(g)": lambda g, matrix, net: by_matrix(g, net),
    "msign(g / sqrt(d)) with its energy":
        lambda g, matrix, net: by_matrix(g / matrix.diagonal().sqrt(), net, True),
    "msign(g / d) with its energy":
        lambda g, matrix, net: by_matrix(g / matrix.diagonal(), net, True),
    "F^-1 g, F by layer": lambda g, matrix, net: by_layer(g, matrix, net),
}


class Net(nn.Sequential):
    """Pooled images (n, 49), the last feature constant, -> logits (n, 10); tanh, no biases: every
    parameter is in a matrix."""

    def __init__(self, width: int = WIDTH, features: int = 49, classes: int = 10) -> None:
        super().__init__(nn.Linear(features, width, bias=False), nn.Tanh(),
                         nn.Linear(width, width, bias=False), nn.Tanh(),
                         nn.Linear(width, classes, bias=False))


def pooled(images: Tensor) -> Tensor:
    """Pool images (n, 3, 32, 32) to (n, 49): means over 8 x 8 pixels, and a constant 1."""
    return F.pad(F.avg_pool2d(images, 8).flatten(1), (0, 1), value=1.0)


def fisher(model: nn.Module, inputs: Tensor) -> Tensor:
    """The exact Fisher (P, P) of a softmax classifier: the mean over `inputs` of
    J^T (diag p - p p^T) J, with J (classes, P) the Jacobian of the logits: the expectation over
    the model's own labels is exact. Order of the parameters: `model.named_parameters()`."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    size = sum(p.numel() for p in params.values())

    def logits(params: dict, row: Tensor) -> Tensor:
        return functional_call(model, params, (row.unsqueeze(0),)).squeeze(0)

    total = inputs.new_zeros(size, size)
    for rows in inputs.split(CHUNK):
        each = vmap(jacrev(logits), in_dims=(None, 0))(params, rows)
        jacobian = torch.cat([each[name].flatten(2) for name in params], dim=2)
        p = model(rows).detach().softmax(-1)
        # diag p - p p^T = C^T C with C = diag sqrt(p) (I - 1 p^T).
        centred = jacobian - (p.unsqueeze(-1) * jacobian).sum(1, keepdim=True)
        root = (centred * p.sqrt().unsqueeze(-1)).flatten(0, 1)
        total.addmm_(root.T, root)
    return total / len(inputs)


def damped(matrix: Tensor, share: float) -> Tensor:
    """Return F + lambda I in float64, lambda = share * tr F / P."""
    matrix = matrix.double()
    return matrix + share * matrix.diagonal().mean() * torch.eye(len(matrix)).double()


def by_layer(gradient: Tensor, matrix: Tensor, net: nn.Module) -> Tensor:
    """Return F^-1 g with all blocks of F between two different parameters set to zero."""
    at, parts = 0, []
    for size in (p.numel() for p in net.parameters()):
        block = slice(at, at + size)
        parts.append(torch.linalg.solve(matrix[block, block], gradient[block]))
        at += size
    return torch.cat(parts)


def by_matrix(flat: Tensor, net: nn.Module, energy: bool = False) -> Tensor:
    """Return the exact msign of each parameter's part of a flat vector, times the norm of that part
    if `energy`."""
    parts = flat.split([p.numel() for p in net.parameters()])
    shaped = [part.view_as(p) for part, p in zip(parts, net.parameters(), strict=True)]
    polar = [o.flatten() * (s.norm() if energy else 1.0)
             for o, s in zip(orthogonalize(shaped, "svd", 5), shaped, strict=True)]
    return torch.cat(polar)


def flat_gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the mean cross entropy as a flat vector."""
    loss = F.cross_entropy(model(inputs), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def shadow_update(model: nn.Module, optimizer: torch.optim.Optimizer, weights: dict,
                  inputs: Tensor, labels: Tensor) -> Tensor:
    """Set a rule's weights to `weights` and return the step it takes there, as a flat vector."""
    model.load_state_dict(weights)

    def closure() -> Any:
        model.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss.detach()

    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer.step(closure)
    return torch.cat([p.detach().flatten() for p in model.parameters()]) - before


def measure(seeds: list[int]) -> Iterable[Row]:
    """Yield, at each point, the cosine of every optimizer's step and every operator's result with
    the natural gradient, the loss, and the mean eigenvalue of the Fisher matrix."""
    for seed in seeds:
        inputs, labels = examples(seed)
        torch.manual_seed(seed)
        start = Net()
        models = {rule: copy.deepcopy(start) for rule in RULES}
        optimizers = {rule: build_optimizer({**settings, "lr": LR}, models[rule])
                      for rule, settings in RULES.items()}
        generator = torch.Generator().manual_seed(seed)
        for step in range(1, POINTS[-1] + 1):
            batch = torch.randint(EXAMPLES, (BATCH,), generator=generator)
            weights = copy.deepcopy(models[DRIVER].state_dict())
            updates = {rule: shadow_update(models[rule], optimizers[rule], weights, inputs[batch],
                                           labels[batch]) for rule in RULES}
            if step in POINTS:
                start.load_state_dict(weights)
                for axis, value, settings in measure_at(start, inputs, labels, updates):
                    yield Row(axis, seed, value, settings={"step": step, **settings})


def measure_at(net: nn.Module, inputs: Tensor, labels: Tensor, updates: dict[str, Tensor]
               ) -> Iterator[tuple[str, float, dict]]:
    """Yield (axis, value, settings) at one point."""
    gradient = flat_gradient(net, inputs, labels).double()
    matrix = fisher(net, inputs)
    for share in DAMPINGS:
        with_damping = damped(matrix, share)
        target = -torch.linalg.solve(with_damping, gradient)
        ideals = {name: -operator(gradient, with_damping, net)
                  for name, operator in IDEALS.items()}
        for kind, directions in (("rules", updates), ("ideals", ideals)):
            for name, direction in directions.items():
                yield "cosine", cosine(direction, target), {"kind": kind, "name": name,
                                                            "damping": share}
    with torch.no_grad():
        yield "loss", float(F.cross_entropy(net(inputs), labels)), {}
    yield "mean eigenvalue", float(matrix.diagonal().mean()), {}


def examples(seed: int) -> tuple[Tensor, Tensor]:
    """Return pooled training images of CIFAR-10 and their labels."""
    train = cifar10(EXAMPLES, crop=0, flip=False, cutout=0, seed=seed,
                    device=torch.device("cpu")).train
    images, labels = next(train.epoch(0))
    return pooled(images), labels


def judge(rows: Rows) -> Verdict:
    """Judge by AdaRMSuon's cosines during training; the text also gives those of SGD and Adam."""
    trees = rows.where(kind="rules", damping=DECIDES).tree("name", "step")
    means = {rule: list(map(average, trees[rule].values()))
             for rule in ("SGD", "Adam", "AdaRMSuon")}
    ours = map(sample, trees["AdaRMSuon"].values())
    return Verdict(
        judge_all([judge_above(each, NEARLY) for each in ours]),
        "cosine " + ", ".join(f"{rule} {min(values):.2f} to {max(values):.2f}"
                              for rule, values in means.items()))


def tables(rows: Rows) -> dict:
    """Return tables of cosines at the deciding damping, for rules and operators, and at all
    dampings."""
    head = [f"step {step} (loss {mean(losses).value:.2f})"
            for step, losses in rows.where(axis="loss").tree("step").items()]
    trees = rows.tree("kind", "damping", "name", "step")
    last = rows.where(step=rows.levels("step")[-1])
    titles = {"rules": "the rules as they run",
              "ideals": "operators on the exact g and F + lambda I, d its diagonal"}
    content = {kind: [(title, *head), *((name, *by_step.values())
                                        for name, by_step in trees[kind][DECIDES].items())]
               for kind, title in titles.items()}
    dampings = last.tree("name", "damping")
    content["dampings"] = [
        (f"at step {last[0]['step']}, lambda over the mean eigenvalue",
         *(f"{share:g}" for share in trees["rules"])),
        *((name, *by_share.values()) for name, by_share in dampings.items())]
    return content | {"parameters": f"{sum(p.numel() for p in Net().parameters())}"}
