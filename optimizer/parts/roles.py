"""The role of each parameter of a model, which decides whether a matrix rule updates it.

A model may define `roles()`, which maps each parameter name to "hidden", "embedding", "head" or
"vector". For any other nn.Module the roles are inferred from the types and names of its modules.
"""

import re
from typing import NamedTuple

from torch import Tensor, nn

# Names of output layers, and of embedding tables that are not in an nn.Embedding.
HEAD = re.compile(r"(^|\.)(\w*head|classifier|decoder|fc|fc_out|output|out|to_logits|unembed\w*)$")
TABLE = re.compile(r"(^|_)(pos|position\w*|\w*embed\w*|tokens?|cls|wte|wpe)(_|$)")


class Role(NamedTuple):
    """"hidden", "embedding", "head" or "vector", and the reason for the decision."""

    role: str
    reason: str


def roles_of(model: nn.Module) -> dict[str, Role]:
    """Map each parameter's name to its role. Tied parameters appear once, as in
    `named_parameters`."""
    own_roles = getattr(model, "roles", None)
    if own_roles is not None:
        roles = own_roles()
        return {name: Role(roles[name], "model.roles()") for name, _ in model.named_parameters()}
    owners: dict[Tensor, list[nn.Module]] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners.setdefault(p, []).append(module)
    head = output_layer(model)
    return {name: _role(name, p, owners[p], head) for name, p in model.named_parameters()}


def _role(name: str, p: Tensor, owners: list[nn.Module], head: nn.Module | None) -> Role:
    kinds = [type(owner).__name__ for owner in owners]
    last = name.rpartition(".")[2]
    if any(isinstance(owner, nn.Embedding | nn.EmbeddingBag) for owner in owners):
        tied = f", tied: {' and '.join(kinds)}" if len(kinds) > 1 else ""
        return Role("embedding", f"nn.Embedding{tied}")
    if sum(size > 1 for size in p.shape) < 2:
        return Role("vector", "at most one dimension")
    if "bias" in last or any("Norm" in kind for kind in kinds):
        return Role("vector", f"{last} of {kinds[0]}")
    if head is not None and any(owner is head for owner in owners):
        return Role("head", "output layer")
    if not owners[0].__module__.startswith("torch.nn") and TABLE.search(last.lower()):
        return Role("embedding", f"named {last}")
    return Role("hidden", f"{last} of {kinds[0]}")


def output_layer(model: nn.Module) -> nn.Module | None:
    """Return the output layer, or None. In this order: `get_output_embeddings()` of transformers; a
    Linear tied to an embedding; the last Linear outside repeated blocks with a name as in HEAD; the
    last Linear of all, if it is outside repeated blocks."""
    named = getattr(model, "get_output_embeddings", None)
    layer = named() if callable(named) else None
    if layer is not None:
        return layer
    layers = [(name, module) for name, module in model.named_modules()
              if isinstance(module, nn.Linear) and not _in_attention(model, name)]
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    tied = [module for _, module in layers if module.weight in tables]
    if tied:
        return tied[-1]
    single = [(name, module) for name, module in layers if not _is_repeated(name, module, layers)]
    named_heads = [module for name, module in single if HEAD.search(name.lower())]
    if named_heads:
        return named_heads[-1]
    return single[-1][1] if single and single[-1] == layers[-1] else None


def _in_attention(model: nn.Module, name: str) -> bool:
    parent = name.rpartition(".")[0]
    return isinstance(model.get_submodule(parent), nn.MultiheadAttention)


def _is_repeated(name: str, layer: nn.Linear, layers: list[tuple[str, nn.Linear]]) -> bool:
    """Whether another block of a list has a layer of the same name and shape: layers.0.up and
    layers.1.up."""
    def pattern(path: str) -> str:
        return re.sub(r"(^|\.)\d+(?=\.)", r"\1#", path)

    return any(pattern(other) == pattern(name) and other != name
               and twin.weight.shape == layer.weight.shape for other, twin in layers)
