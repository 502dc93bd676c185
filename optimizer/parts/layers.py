"""Base of optimizers that work per Linear or Conv2d layer: groups, hooks, recorded statistics."""

from collections.abc import Iterable, Mapping
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .matrix import ADAMW_KEYS, BOOKKEEPING, MatrixOptimizer, by_track

Layer = nn.Linear | nn.Conv2d


class LayerOptimizer(MatrixOptimizer):
    """A matrix rule for the weight and bias of each Linear and Conv2d of `model` whose weight is
    routed to the matrix track, with a `Recorder` per layer.

    All other parameters take AdamW, whatever track their group names: embeddings, norms, parameters
    outside these layers (all of GrokkingTransformer's), shared weights, convolutions with groups or
    padding modes, subclasses of both layers. With `weights_only` biases take AdamW too and the
    gradients of the outputs are not recorded. Raises ValueError as MatrixOptimizer does.
    """

    weights_only = False
    one_process = "its factors use the activations of this process alone"

    def __init__(self, params: Iterable, model: nn.Module, defaults: dict) -> None:
        self.layers = layers_of(model)
        self.recorders: dict[Tensor, Recorder] = {}
        super().__init__(routed(params, self.layers, self.weights_only), defaults)

    def is_matrix(self, tensor: Tensor) -> bool:
        """Whether `tensor` is the weight or the bias of one of the layers."""
        return any(tensor is layer.weight or tensor is layer.bias
                   for layer in self.layers.values())

    def add_param_group(self, group: dict) -> None:
        """Add a group: layers go to the matrix track and get a hook each, the rest to AdamW."""
        for part in routed([group], self.layers, self.weights_only):
            super().add_param_group(part)
            for p in self.param_groups[-1]["params"]:
                if part["track"] == "matrix" and p in self.layers:
                    layer = self.layers[p]
                    has_bias = any(b is layer.bias for b in self.param_groups[-1]["params"])
                    self.recorders[p] = Recorder(has_bias, outputs=not self.weights_only)
                    layer.register_forward_hook(self.recorders[p])

    def record(self, due: bool) -> None:
        """Record in the next step if `due`; layers without statistics always record."""
        for weight, recorder in self.recorders.items():
            recorder.active = due or "input_factor" not in self.state.get(weight, {})


class Recorder:
    """Forward hook of one layer: sums of a a^T (in, in) and d d^T (out, out) over rows, where a is
    an input and d the gradient of an output, since the weight's gradient was last None.

    A pass counts in training mode only, when its backward pass runs. Passes that accumulate into
    one gradient of the mean loss are summed; a pass that starts with the gradient None (SAM's
    second) resets the sums. The hook holds plain tensors and no optimizer, so the model can be
    copied and pickled.
    """

    def __init__(self, bias: bool, outputs: bool = True) -> None:
        self.bias, self.with_outputs, self.active = bias, outputs, True
        self.reset()

    def reset(self) -> None:
        """Clear all sums."""
        self.rows = self.samples = 0
        self.inputs = self.outputs = torch.zeros(())

    @torch.compiler.disable
    def __call__(self, layer: Layer, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Register `add` to run when the backward pass computes the gradient of `output`."""
        if not (self.active and layer.training and output.requires_grad):
            return
        if layer.weight.grad is None:  # the first pass of this gradient
            self.reset()
        inputs = args[0].detach()
        output.register_hook(lambda grad: self.add(layer, inputs, grad.detach()))

    def add(self, layer: Layer, inputs: Tensor, grad: Tensor) -> None:
        """Add one pass: the layer's inputs, and `grad`, the gradient of its outputs."""
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        a, d = rows_of(layer, inputs.to(dtype), grad.to(dtype))
        if self.bias:
            a = F.pad(a, (0, 1), value=1.0)
        self.rows += len(a)
        self.samples += len(inputs) if isinstance(layer, nn.Conv2d) else len(a)
        self.inputs = self.inputs + a.mT @ a
        if self.with_outputs:
            self.outputs = self.outputs + d.mT @ d

    def factors(self, conv_norm: str) -> tuple[Tensor, Tensor]:
        """Return A (in, in) and G (out, out) of the recorded passes, with d scaled by the number of
        samples to undo the mean in the loss.

        conv_norm, for a convolution of N samples and T positions: "kfc" (the paper) A = sum a a^T
        / N and G = sum d d^T / (N T); "kfac_pytorch" (alecwangcq/KFAC-Pytorch) divides A by T^2
        and multiplies G by T^2, which changes only the weight of the initial identities.
        """
        if conv_norm == "kfc":
            return self.inputs / self.samples, self.outputs * (self.samples**2 / self.rows)
        return self.inputs * (self.samples / self.rows**2), self.outputs * self.rows


def layers_of(model: nn.Module) -> dict[Tensor, Layer]:
    """Map each trainable weight to its Linear or Conv2d; shared weights are left out."""
    owners: dict[Tensor, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners[p] = owners.get(p, 0) + 1
    return {module.weight: module for module in model.modules() if is_plain(module)
            and module.weight.requires_grad and owners[module.weight] == 1}


def is_plain(module: nn.Module) -> TypeGuard[Layer]:
    """Whether `module` is a Linear or a Conv2d (no subclass) that `rows_of` supports: no groups,
    zero padding given in numbers."""
    return type(module) is nn.Linear or (
        type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
        and not isinstance(module.padding, str))


def routed(params: Iterable, layers: Mapping[Tensor, Layer], weights_only: bool = False
           ) -> list[dict]:
    """Return `params` as groups with a track. Tensors on the matrix track that are no weight in
    `layers` move to the first AdamW group; a layer's bias follows its weight, unless
    `weights_only`."""
    items = list(params)
    groups = items if items and isinstance(items[0], dict) else [{"params": items}]
    parts = [part for group in groups for part in by_track(group)]
    given = {_tensor(p): p for part in parts for p in part["params"]}
    weights = [_tensor(p) for part in parts if part["track"] == "matrix" for p in part["params"]
               if _tensor(p) in layers]
    bias_of = {w: given[bias] for w in weights if not weights_only
               and (bias := layers[w].bias) is not None and bias in given}
    moved = {layers[w].bias for w in bias_of}
    matrices, rest, strays = [], [], []
    for part in parts:
        members = [p for p in part["params"] if _tensor(p) not in moved]
        if part["track"] == "adamw":
            rest.append({**part, "params": members})
            continue
        strays += [p for p in members if _tensor(p) not in layers]
        of_layers = [p for p in members if _tensor(p) in layers]
        with_biases = [q for p in of_layers for q in (p, bias_of.get(_tensor(p))) if q is not None]
        matrices.append({**part, "params": with_biases})
    if strays and not rest:
        shared = {key: parts[0][key] for key in parts[0] if key in ADAMW_KEYS + BOOKKEEPING}
        rest.append({**shared, "params": [], "track": "adamw"})
    if strays:
        rest[0]["params"] = rest[0]["params"] + strays
    return [part for part in matrices + rest if part["params"]]


def rows_of(layer: Layer, inputs: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return a (rows, in) and d (rows, out): one row per input row of a Linear, or per position of
    a convolution, where `in` is channels * kernel size."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)  # see is_plain
        patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        inputs, grad = patches.mT, grad.flatten(2).mT
    return inputs.reshape(-1, inputs.shape[-1]), grad.reshape(-1, grad.shape[-1])


def _tensor(p: Tensor | tuple[str, Tensor]) -> Tensor:
    return p[1] if isinstance(p, tuple) else p
