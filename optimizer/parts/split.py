"""Which parameters go to which track: hidden matrices to the matrix rule, the rest to AdamW."""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from .roles import roles_of

Routing = Literal["role", "shape", "all"]

PUBLISHED_LIMIT = 10_000  # tensors with a side this long went to AdamW in the published runs


class Route(NamedTuple):
    """The track of one parameter, "matrix" or "adamw", and what decided it."""

    name: str
    parameter: Tensor
    track: str
    reason: str


def routes(model: nn.Module, routing: str = "role") -> list[Route]:
    """The route of each trainable parameter, each exactly once; tied ones count once.

    routing: "role" the matrices with the role "hidden" (parts/roles.py); "shape" every tensor of
    two or more dimensions whose sides are all below 10,000, as in the published runs (embeddings
    and head included); "all" every tensor of two or more dimensions.
    Raises ValueError for another routing.
    """
    if routing not in ("role", "shape", "all"):
        raise ValueError(f'routing must be "role", "shape" or "all", got {routing!r}')
    roles = roles_of(model) if routing == "role" else {}
    decided = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        hidden, reason = p.ndim >= 2, f"{p.ndim} dimensions"
        if routing == "role":
            hidden, reason = roles[name].role == "hidden", ": ".join(roles[name])
        elif routing == "shape" and hidden and max(p.shape) >= PUBLISHED_LIMIT:
            hidden, reason = False, f"a side of {max(p.shape)}"
        decided.append(Route(name, p, "matrix" if hidden else "adamw", reason))
    return decided


def split(model: nn.Module, routing: str = "role") -> tuple[list[Tensor], list[Tensor]]:
    """(matrices, rest) of the trainable parameters, by `routes`."""
    decided = routes(model, routing)
    return tuple([route.parameter for route in decided if route.track == track]
                 for track in ("matrix", "adamw"))


def parameter_groups(model: nn.Module, routing: str = "role", **adamw: float) -> list[dict]:
    """Parameter groups of a matrix rule for any model, as in `Muon(parameter_groups(model))`.

    adamw: lr, betas, eps, weight_decay of the group that takes AdamW. A track without parameters
    has no group. `print(routing_table(model))` shows what went where.
    """
    matrices, rest = split(model, routing)
    groups = [{"params": matrices, "track": "matrix"}, {"params": rest, "track": "adamw", **adamw}]
    return [group for group in groups if group["params"]]


def routing_table(model: nn.Module, routing: str = "role") -> str:
    """One line per trainable parameter: track, shape, name, and what decided it."""
    return "\n".join(f"{track:<7}{str(tuple(p.shape)):<20}{name:<50} {reason}"
                     for name, p, track, reason in routes(model, routing))
