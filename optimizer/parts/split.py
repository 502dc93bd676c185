"""Who goes to which track: the hidden matrices to the matrix rule, the rest to AdamW."""

from typing import Literal

from torch import Tensor, nn

Routing = Literal["role", "shape", "all"]

PUBLISHED_LIMIT = 10_000  # tensors with a side this long went to AdamW in the published runs


def split(model: nn.Module, routing: str = "role") -> tuple[list[Tensor], list[Tensor]]:
    """(matrices, rest) of the trainable parameters, each exactly once; tied ones count once.

    routing: "role" the matrices that `model.roles()` calls hidden; "shape" every tensor of two or
    more dimensions whose sides are all below 10,000, as in the published runs (embeddings and
    head with them); "all" every tensor of two or more dimensions.
    Raises ValueError for another routing, or if "role" is asked of a model without `roles()`.
    """
    if routing not in ("role", "shape", "all"):
        raise ValueError(f'routing must be "role", "shape" or "all", got {routing!r}')
    if routing == "role" and not hasattr(model, "roles"):
        raise ValueError(f'{type(model).__name__} has no roles(): give it one, which says for each '
                         'parameter name "hidden", "embedding", "head" or "vector", or use '
                         'routing = "shape" or "all"')
    roles = model.roles() if routing == "role" else {}
    matrices, rest = [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        hidden = roles[name] == "hidden" if roles else p.ndim >= 2
        if routing == "shape":
            hidden = hidden and max(p.shape) < PUBLISHED_LIMIT
        (matrices if hidden else rest).append(p)
    return matrices, rest
