"""K-FAC, Martens & Grosse 2015, arXiv 1503.05671: natural gradient, Kronecker-factored by layer.

Convolutions: Grosse & Martens 2016, arXiv 1602.01407. KL clip: Ba et al. 2017 (ICLR).
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .parts import checks
from .parts.kronecker import eigh
from .parts.matrix import ADAMW_KEYS, BOOKKEEPING, MatrixOptimizer, by_track

__all__ = ["KFAC"]

SEARCH_SPACE = {
    "lr": (1e-4, 1e-1, "log"),
    "damping": (1e-5, 1e-1, "log"),
    "kl_clip": (1e-4, 1e-2, "log"),
    "weight_decay": (1e-5, 1e-2, "log"),
    "adamw.lr": (1e-4, 1e-2, "log"),
}
# Momentum, and of each of two factors: itself, its eigenvectors, its eigenvalues.
COST = {"gradient_evaluations": 1, "state_tensors": 7}

SMALLEST_EIGENVALUE = 1e-10  # up to here an eigenvalue counts as zero, as in the reference code
Tikhonov = Literal["exact", "factored"]
ConvNorm = Literal["kfc", "kfac_pytorch"]


class KFAC(MatrixOptimizer):
    """Natural gradient with the Fisher matrix of each Linear and Conv2d taken as A (x) G.

        A <- stat_decay A + (1 - stat_decay) mean of a a^T    a (in [+ 1]) inputs, 1 for the bias
        G <- stat_decay G + (1 - stat_decay) mean of d d^T    d (out) gradient of a sample's loss
        V = [dW | db] (out, in [+ 1]);   A = Qa diag(da) Qa^T,   G = Qg diag(dg) Qg^T
        P = Qg ((Qg^T V Qa) / (dg da^T + damping)) Qa^T
        nu = min(1, sqrt(kl_clip / sum of lr^2 <P, V>))       the sum over all layers
        M <- momentum M + nu P + weight_decay W,   W <- W - lr M

    Hooks on `model`, which holds the parameters, see a and d every `factor_interval` steps (TCov);
    eigenvectors are renewed every `inverse_interval` (TInv). A and G start as identities; an
    eigenvalue <= 1e-10 counts as zero. damping 0 is the pseudo-inverse, an infinite kl_clip none.
    tikhonov="factored" has (dg + sqrt(damping) / pi) (da + pi sqrt(damping))^T for denominator,
    pi^2 = (tr A / dim A) / (tr G / dim G).

    Who is on this track: weight and bias of each Linear and Conv2d whose weight is routed to the
    matrices. All else goes to AdamW whatever its group says: embeddings, norms, raw parameters
    (no hook sees what they multiply: GrokkingTransformer has nothing else), weights that two
    modules share, convolutions with groups or other padding than zeros in numbers, subclasses of
    both layers. The groups as built and `diagnostics` say how it came out.

    A pass counts in training mode only, once its backward pass arrives. The loss must be a mean
    over samples: images, or for a Linear all rows of its input (tokens); d is the gradient times
    their number. Passes that share in one gradient (accumulation of the mean loss) are added up;
    one that begins with the gradient at None starts anew (SAM's second). A layer called twice in
    a pass counts as so many more samples. The labels are the true ones: the empirical Fisher.

    conv_norm, for a convolution of N samples and T positions: "kfc" (the paper) A = sum a a^T / N
    and G = sum d d^T / (N T); "kfac_pytorch" (alecwangcq/KFAC-Pytorch) the first over T^2, the
    second times T^2. The product is the same, the weight of the identity start is not.

    Deviations from that code: weight_decay acts from the first step (there after 20 TCov), the
    other parameters take AdamW (there this SGD), `p.grad` is left as it is (there overwritten).

    Cost: 1 gradient evaluation a step; momentum, and for each side of a layer its factor, the
    eigenvectors and the eigenvalues; two eigendecompositions a layer every `inverse_interval`.
    """

    one_process = "its factors are of the activations that this process has seen"

    def __init__(
        self,
        params: Iterable,
        model: nn.Module,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        stat_decay: float = 0.95,
        damping: float = 1e-3,
        kl_clip: float = 1e-3,
        factor_interval: int = 10,
        inverse_interval: int = 100,
        tikhonov: Tikhonov = "exact",
        conv_norm: ConvNorm = "kfc",
    ) -> None:
        checks.non_negative(lr=lr, weight_decay=weight_decay, damping=damping, kl_clip=kl_clip)
        checks.fraction(momentum=momentum, stat_decay=stat_decay)
        checks.at_least(1, factor_interval=factor_interval, inverse_interval=inverse_interval)
        checks.choice(Tikhonov, tikhonov=tikhonov)
        checks.choice(ConvNorm, conv_norm=conv_norm)
        self.stat_decay, self.kl_clip, self.conv_norm = stat_decay, kl_clip, conv_norm
        self.factor_interval, self.inverse_interval = factor_interval, inverse_interval
        self.layers = layers_of(model)
        self.recorders: dict[Tensor, Recorder] = {}
        self.hooks = []
        self.updates: dict[Tensor, Tensor] = {}
        self.kl_scale = torch.ones(())
        super().__init__(routed(params, self.layers), {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "damping": damping,
            "tikhonov": tikhonov})
        self.keep_scalars(steps=0)

    @property
    def diagnostics(self) -> dict[str, float]:
        """nu of the last step, the layers on this track, AdamW's share of all elements."""
        sizes = {track: sum(p.numel() for group in self.param_groups if group["track"] == track
                            for p in group["params"]) for track in ("matrix", "adamw")}
        return {"kl_scale": float(self.kl_scale), "layers": float(len(self.recorders)),
                "adamw_share": sizes["adamw"] / sum(sizes.values())}

    def is_matrix(self, tensor: Tensor) -> bool:
        """Whether it is the weight or the bias of a layer that K-FAC knows."""
        return any(tensor is layer.weight or tensor is layer.bias
                   for layer in self.layers.values())

    def add_param_group(self, group: dict) -> None:
        """Add a group: the layers in it to this track, with a hook each, the rest to AdamW's."""
        for part in routed([group], self.layers):
            super().add_param_group(part)
            for p in self.param_groups[-1]["params"]:
                if part["track"] == "matrix" and p in self.layers:
                    layer = self.layers[p]
                    has_bias = any(b is layer.bias for b in self.param_groups[-1]["params"])
                    self.recorders[p] = Recorder(has_bias)
                    self.hooks.append(layer.register_forward_hook(self.recorders[p]))

    def remove_hooks(self) -> None:
        """Take the hooks off the model, when this optimizer is done with it."""
        for hook in self.hooks:
            hook.remove()

    @torch.compiler.disable  # it would lose the directions
    def update(self) -> None:
        """Apply the gradients that stand in `p.grad`, each track by its rule."""
        for group in self.param_groups:
            for p in self.with_gradient(group):
                if p in self.recorders:
                    self._update_factors(p)
                    self.updates.update(self._natural_gradient(p, group))
        self._clip_updates()
        super().update()
        self.updates = {}
        self.scalars["steps"] += 1
        self._schedule_recording()

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Momentum over nu P + weight_decay W, in place."""
        params = [p for p in params if p in self.updates]
        if not params:  # biases alone, whose weights have no gradient
            return
        buffers = self.buffers(params, "momentum_buffer")
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, [self.updates[p] for p in params])
        torch._foreach_add_(buffers, params, alpha=group["weight_decay"])
        torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def _update_factors(self, weight: Tensor) -> None:
        """Take in what the hook of a layer has seen; renew the eigenvectors where due."""
        state, recorder = self.state[weight], self.recorders[weight]
        if recorder.rows:
            factors = recorder.factors(self.conv_norm)
            for side, factor in zip(("input", "output"), factors, strict=True):
                if f"{side}_factor" not in state:
                    state[f"{side}_factor"] = torch.eye(len(factor)).to(factor)
                state[f"{side}_factor"].lerp_(factor, 1 - self.stat_decay)
            recorder.reset()
        if "input_factor" not in state:
            raise ValueError(
                f"{self.layers[weight]} has a gradient, but KFAC saw no training pass through it: "
                'call the module itself, in training mode, or put its weight on track "adamw"')
        due = self.scalars["steps"] % self.inverse_interval == 0
        if due or "input_eigenvalues" not in state:
            for side in ("input", "output"):
                values, vectors = eigenbasis(state[f"{side}_factor"])
                state[f"{side}_eigenvalues"], state[f"{side}_eigenvectors"] = values, vectors

    def _natural_gradient(self, weight: Tensor, group: dict) -> dict[Tensor, Tensor]:
        """P of one layer, as parameter -> its part."""
        state = self.state[weight]
        basis_in, basis_out = state["input_eigenvectors"], state["output_eigenvectors"]
        members = [weight, *([self.layers[weight].bias] if self.recorders[weight].bias else [])]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in members]
        v = torch.cat([g.reshape(len(g), -1) for g in grads], 1).to(basis_in.dtype)
        rotated = basis_out.mT @ v @ basis_in
        denominator = damped(state["output_eigenvalues"], state["input_eigenvalues"],
                             group["damping"], group["tikhonov"])
        rotated = torch.where(denominator == 0, 0, rotated / denominator)
        parts = (basis_out @ rotated @ basis_in.mT).split([g[0].numel() for g in grads], 1)
        return {p: part.reshape(p.shape) for p, part in zip(members, parts, strict=True)
                if p.grad is not None}

    def _clip_updates(self) -> None:
        if not self.updates:
            return
        total = sum(group["lr"] ** 2 * (self.updates[p] * p.grad).sum()
                    for group in self.param_groups for p in group["params"] if p in self.updates)
        tiny = torch.finfo(total.dtype).tiny  # all gradients may be zero
        self.kl_scale = (self.kl_clip / total.clamp_min(tiny)).sqrt().clamp_max(1.0)
        torch._foreach_mul_(list(self.updates.values()), self.kl_scale)

    def _schedule_recording(self) -> None:
        """Tell the hooks whether the step to come wants statistics; a layer without any does."""
        due = self.scalars["steps"] % self.factor_interval == 0
        for weight, recorder in self.recorders.items():
            recorder.active = due or "input_factor" not in self.state.get(weight, {})

    def after_loading(self) -> None:
        """Schedule the recording by the restored step count."""
        super().after_loading()
        self._schedule_recording()


class Recorder:
    """The forward hook of one layer: sums of a a^T and d d^T since the gradient was last None.

    It knows no optimizer and holds plain tensors, so that its model can be copied and pickled.
    """

    def __init__(self, bias: bool) -> None:
        self.bias, self.active = bias, True
        self.reset()

    def reset(self) -> None:
        """Forget all sums."""
        self.rows = self.samples = 0
        self.inputs = self.outputs = 0.0

    @torch.compiler.disable
    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Record once the backward pass brings the gradient of `output`."""
        if not (self.active and layer.training and output.requires_grad):
            return
        if layer.weight.grad is None:  # the first pass towards a gradient, not one more share of it
            self.reset()
        inputs = args[0].detach()
        output.register_hook(lambda grad: self.add(layer, inputs, grad.detach()))

    def add(self, layer: nn.Module, inputs: Tensor, grad: Tensor) -> None:
        """Add one pass: the layer's inputs and the gradient of its outputs."""
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        a, d = rows_of(layer, inputs.to(dtype), grad.to(dtype))
        if self.bias:
            a = F.pad(a, (0, 1), value=1.0)
        self.rows += len(a)
        self.samples += len(inputs) if isinstance(layer, nn.Conv2d) else len(a)
        self.inputs = self.inputs + a.mT @ a
        self.outputs = self.outputs + d.mT @ d

    def factors(self, conv_norm: str) -> tuple[Tensor, Tensor]:
        """A and G of what was recorded, `samples` undoing the mean in the loss."""
        if conv_norm == "kfc":
            return self.inputs / self.samples, self.outputs * (self.samples**2 / self.rows)
        return self.inputs * (self.samples / self.rows**2), self.outputs * self.rows


def layers_of(model: nn.Module) -> dict[Tensor, nn.Module]:
    """Trainable weight -> the Linear or Conv2d whose inputs are all that it multiplies."""
    owners: dict[Tensor, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners[p] = owners.get(p, 0) + 1
    found = {}
    for module in model.modules():
        plain = type(module) is nn.Linear or (
            type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
            and not isinstance(module.padding, str))
        if plain and module.weight.requires_grad and owners[module.weight] == 1:
            found[module.weight] = module
    return found


def routed(params: Iterable, layers: Mapping[Tensor, nn.Module]) -> list[dict]:
    """`params` as groups that name their track: what is no weight of `layers` leaves the matrices
    for the first AdamW group, and the bias of a layer follows its weight."""
    items = list(params)
    groups = items if items and isinstance(items[0], dict) else [{"params": items}]
    parts = [part for group in groups for part in by_track(group)]
    given = {_tensor(p): p for part in parts for p in part["params"]}
    weights = [_tensor(p) for part in parts if part["track"] == "matrix" for p in part["params"]
               if _tensor(p) in layers]
    bias_of = {w: given[layers[w].bias] for w in weights if layers[w].bias in given}
    moved = {layers[w].bias for w in bias_of}
    matrices, rest, strays = [], [], []
    for part in parts:
        mine = [p for p in part["params"] if _tensor(p) not in moved]
        if part["track"] == "adamw":
            rest.append({**part, "params": mine})
            continue
        strays += [p for p in mine if _tensor(p) not in layers]
        kept = [p for p in mine if _tensor(p) in layers]
        together = [q for p in kept for q in (p, bias_of.get(_tensor(p))) if q is not None]
        matrices.append({**part, "params": together})
    if strays and not rest:
        shared = {key: parts[0][key] for key in parts[0] if key in ADAMW_KEYS + BOOKKEEPING}
        rest.append({**shared, "params": [], "track": "adamw"})
    if strays:
        rest[0]["params"] = rest[0]["params"] + strays
    return [part for part in matrices + rest if part["params"]]


def rows_of(layer: nn.Module, inputs: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """a (rows, in) and d (rows, out): a Linear's rows, a convolution's patches (in * kernel)."""
    if isinstance(layer, nn.Conv2d):
        patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        inputs, grad = patches.mT, grad.flatten(2).mT
    return inputs.reshape(-1, inputs.shape[-1]), grad.reshape(-1, grad.shape[-1])


def eigenbasis(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the smallest taken as zero, and eigenvectors of a symmetric matrix.

    NaN for one that is not finite: a run that diverges shall be recorded so, not crash here.
    """
    if not factor.isfinite().all():
        return factor.diagonal() * torch.nan, factor * torch.nan
    values, vectors = eigh(factor)
    return values * (values > SMALLEST_EIGENVALUE), vectors


def damped(output: Tensor, inputs: Tensor, damping: float, tikhonov: str) -> Tensor:
    """(out, in) eigenvalues of G (x) A with `damping` added as the class docstring says."""
    if tikhonov == "exact":
        return torch.outer(output, inputs) + damping
    tiny = torch.finfo(inputs.dtype).tiny  # a factor may be zero
    pi = inputs.mean().clamp_min(tiny).sqrt() / output.mean().clamp_min(tiny).sqrt()
    return torch.outer(output + damping**0.5 / pi, inputs + damping**0.5 * pi)


def _tensor(p: Tensor | tuple[str, Tensor]) -> Tensor:
    return p[1] if isinstance(p, tuple) else p
