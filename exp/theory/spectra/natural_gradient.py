"""Is a diagonal Fisher with orthogonalization the full Fisher? Against the exact one, of a small
net."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from data.cifar10 import cifar10
from exp.harness.diagnostics import cosine
from exp.report.statistics import mean
from exp.report.tables import interval, markdown
from optimizer import build_optimizer
from optimizer.parts.polar import orthogonalize

SAYS = "Diagonal Fisher plus orthogonalization is (nearly) the full-rank Fisher's natural gradient"
SOURCE = "README 1.2 of the paper's repository, paper 2.4"
RULE = ("holds if the cosine of AdaRMSuon's update with the natural gradient of the exact full "
        "Fisher (damping: a tenth of its mean eigenvalue) is at least 0.9 at every point, mean "
        "over seeds; holds partly if it is above that of SGD's and of Adam's update at every "
        "point; else it does not hold.")
POINTS = (10, 50, 200, 600)  # steps
EXAMPLES, BATCH, WIDTH = 2000, 100, 20
DAMPINGS = (0.01, 0.1, 1.0)  # over the mean eigenvalue; the middle one decides
DECIDES = 1
CHUNK = 250
DRIVER = "Adam"  # makes the path; all the others see its gradients at its weights
BETAS = [0.9, 0.99]
RULES = {
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
# Operators on the exact gradient g and the exact Fisher F, damped: no averages, no noise. d is the
# diagonal of F.
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
    """(n, 3, 32, 32) -> (n, 49): means over 8 x 8 pixels, and a one."""
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
    """F + lambda I in float64, lambda = share * tr F / P."""
    matrix = matrix.double()
    return matrix + share * matrix.diagonal().mean() * torch.eye(len(matrix)).double()


def by_layer(gradient: Tensor, matrix: Tensor, net: nn.Module) -> Tensor:
    """F^-1 g with all blocks of F between two parameters set to zero."""
    at, parts = 0, []
    for size in (p.numel() for p in net.parameters()):
        block = slice(at, at + size)
        parts.append(torch.linalg.solve(matrix[block, block], gradient[block]))
        at += size
    return torch.cat(parts)


def by_matrix(flat: Tensor, net: nn.Module, energy: bool = False) -> Tensor:
    """Exact msign of each parameter's part of a flat vector, times that part's norm if asked."""
    parts = flat.split([p.numel() for p in net.parameters()])
    shaped = [part.view_as(p) for part, p in zip(parts, net.parameters(), strict=True)]
    polar = [o.flatten() * (s.norm() if energy else 1.0)
             for o, s in zip(orthogonalize(shaped, "svd", 5), shaped, strict=True)]
    return torch.cat(polar)


def flat_gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the mean cross entropy, flat."""
    loss = F.cross_entropy(model(inputs), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def shadow_update(model: nn.Module, optimizer: torch.optim.Optimizer, weights: dict,
                  inputs: Tensor, labels: Tensor) -> Tensor:
    """The step, flat, that a rule takes at the given weights; its own are set to them first."""
    model.load_state_dict(weights)

    def closure() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss.detach()

    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer.step(closure)
    return torch.cat([p.detach().flatten() for p in model.parameters()]) - before


def measure(seeds: list[int]) -> dict:
    """{"rules" | "ideals": {name: {"step n": {damping: [cosine a seed]}}}, "loss", "mean
    eigenvalue": {"step n": [value a seed]}}."""
    found: dict = {"rules": {}, "ideals": {}, "loss": {}, "mean eigenvalue": {}}
    for seed in seeds:
        inputs, labels = examples(seed)
        torch.manual_seed(seed)
        start = Net()
        models = {rule: copy.deepcopy(start) for rule in RULES}
        optimizers = {rule: build_optimizer({**settings, "lr": LR}, models[rule])
                      for rule, settings in RULES.items()}
        generator = torch.Generator().manual_seed(seed)
        for step in range(1, POINTS[-1] + 1):
            rows = torch.randint(EXAMPLES, (BATCH,), generator=generator)
            weights = copy.deepcopy(models[DRIVER].state_dict())
            updates = {rule: shadow_update(models[rule], optimizers[rule], weights, inputs[rows],
                                           labels[rows]) for rule in RULES}
            if step in POINTS:
                start.load_state_dict(weights)
                note(found, f"step {step}", start, inputs, labels, updates)
    return found


def examples(seed: int) -> tuple[Tensor, Tensor]:
    """Training images of CIFAR-10, pooled, and their labels."""
    train = cifar10(EXAMPLES, crop=0, flip=False, cutout=0, seed=seed,
                    device=torch.device("cpu")).train
    images, labels = next(train.epoch(0))
    return pooled(images), labels


def note(found: dict, point: str, net: nn.Module, inputs: Tensor, labels: Tensor,
         updates: dict[str, Tensor]) -> None:
    """Add all cosines at one point."""
    gradient = flat_gradient(net, inputs, labels).double()
    matrix = fisher(net, inputs)
    for share in DAMPINGS:
        with_damping = damped(matrix, share)
        target = -torch.linalg.solve(with_damping, gradient)
        ideals = {name: -operator(gradient, with_damping, net)
                  for name, operator in IDEALS.items()}
        for kind, directions in (("rules", updates), ("ideals", ideals)):
            for name, direction in directions.items():
                entry = found[kind].setdefault(name, {}).setdefault(point, {})
                entry.setdefault(f"{share:g}", []).append(cosine(direction, target))
    with torch.no_grad():
        loss = float(F.cross_entropy(net(inputs), labels))
    found["loss"].setdefault(point, []).append(loss)
    found["mean eigenvalue"].setdefault(point, []).append(float(matrix.diagonal().mean()))


def judge(found: dict) -> str:
    """The verdict of RULE."""
    share = f"{DAMPINGS[DECIDES]:g}"

    def cosines(rule: str) -> list[float]:
        return [sum(entry[share]) / len(entry[share]) for entry in found["rules"][rule].values()]

    ours, others = cosines("AdaRMSuon"), [cosines("SGD"), cosines("Adam")]
    if min(ours) >= 0.9:
        return "holds"
    above = all(a > b for other in others for a, b in zip(ours, other, strict=True))
    return "holds partly" if above else "does not hold"


def figure(found: dict) -> str:
    """Cosines over training of the rules that the statement is about."""
    share = f"{DAMPINGS[DECIDES]:g}"
    parts = []
    for rule in ("SGD", "Adam", "AdaRMSuon"):
        cosines = [mean(entry[share]).value for entry in found["rules"][rule].values()]
        parts.append(f"{rule} {min(cosines):.2f} to {max(cosines):.2f}")
    return "cosine " + ", ".join(parts)


def render(found: dict) -> str:
    """Two tables of cosines at the deciding damping, and one of the dampings."""
    share = f"{DAMPINGS[DECIDES]:g}"
    points = list(found["loss"])
    parts = [
        f"A tanh net 49-{WIDTH}-{WIDTH}-10 without biases, "
        f"{sum(p.numel() for p in Net().parameters())} parameters, on {EXAMPLES} CIFAR-10 images "
        f"averaged over 8 x 8 pixels. {DRIVER} (lr {LR:g}, batches of {BATCH}) makes the path; "
        "every rule sees the same gradients at the same weights and keeps its own state. Cosine "
        "of its step with -(F + lambda I)^-1 g, F (over the model's own labels) and g exact on "
        f"all images, lambda {share} of the mean eigenvalue."]
    titles = {"rules": "the rules as they run",
              "ideals": "operators on the exact g and F + lambda I, d its diagonal"}
    for kind, title in titles.items():
        lines = [(title, *(f"{point} (loss {mean(found['loss'][point]).value:.2f})"
                           for point in points))]
        for name, entry in found[kind].items():
            lines.append((name, *(interval(mean(entry[point][share])) for point in points)))
        parts.append(markdown(lines))
    lines = [(f"at {points[-1]}, lambda over the mean eigenvalue", *next(iter(
        found["rules"].values()))[points[-1]])]
    for kind in titles:
        lines += [(name, *(interval(mean(values)) for values in entry[points[-1]].values()))
                  for name, entry in found[kind].items()]
    return "\n\n".join([*parts, markdown(lines)])
