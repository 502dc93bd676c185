"""Routing of parameters to tracks: hidden matrices to the matrix rule, the rest to AdamW."""

from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from .roles import roles_of

Routing = Literal["role", "shape", "all"]

OWN_GROUPS = ("embedding", "head", "vector")  # roles that may have their own AdamW settings
PUBLISHED_LIMIT = 10_000  # the published runs used AdamW for tensors with a side this long


class Route(NamedTuple):
    """The track of one parameter, "matrix" or "adamw", the reason for it, and the role."""

    name: str
    parameter: Tensor
    track: str
    reason: str
    role: str


def routes(model: nn.Module, routing: str = "role") -> list[Route]:
    """Return the route of each trainable parameter; tied parameters appear once.

    routing: which tensors take the matrix track. "role" those with the role "hidden"
    (parts/roles.py); "shape" all of two or more dimensions with every side below 10,000, as in the
    published runs (embeddings and head included); "all" all of two or more dimensions.
    Raises ValueError for another value.
    """
    if routing not in ("role", "shape", "all"):
        raise ValueError(f'routing must be "role", "shape" or "all", got {routing!r}')
    roles = roles_of(model)
    decided = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        hidden, reason = p.ndim >= 2, f"{p.ndim} dimensions"
        if routing == "role":
            hidden, reason = roles[name].role == "hidden", ": ".join(roles[name])
        elif routing == "shape" and hidden and max(p.shape) >= PUBLISHED_LIMIT:
            hidden, reason = False, f"a side of {max(p.shape)}"
        track = "matrix" if hidden else "adamw"
        decided.append(Route(name, p, track, reason, roles[name].role))
    return decided


def split(model: nn.Module, routing: str = "role") -> tuple[list[Tensor], list[Tensor]]:
    """Return the trainable parameters as (matrices, rest), see `routes`."""
    decided = routes(model, routing)
    matrices, rest = ([route.parameter for route in decided if route.track == track]
                      for track in ("matrix", "adamw"))
    return matrices, rest


def parameter_groups(model: nn.Module, routing: str = "role", **adamw: Any) -> list[dict]:
    """Return the parameter groups of a matrix rule, as in `Muon(parameter_groups(model))`.

    adamw: lr, betas, eps, weight_decay of the AdamW group. A dict of these under "embedding",
    "head" or "vector" gives the parameters of that role their own group, which inherits the other
    settings. A track without parameters has no group. `print(routing_table(model))` shows the
    result. Raises ValueError for a role that no parameter off the matrix track has.
    """
    decided = routes(model, routing)
    shared = {key: value for key, value in adamw.items() if key not in OWN_GROUPS}
    by_role = {role: adamw[role] for role in OWN_GROUPS if role in adamw}
    kinds = [route.track if route.track == "matrix" or route.role not in by_role else route.role
             for route in decided]
    if missing := by_role.keys() - set(kinds):
        raise ValueError(f"adamw.{min(missing)} has no effect: no parameter off the matrix track "
                         f"has the role {min(missing)!r}")
    settings = {"matrix": {"track": "matrix"}, "adamw": {"track": "adamw", **shared},
                **{role: {"track": "adamw", **shared, **keys} for role, keys in by_role.items()}}
    return [{"params": [route.parameter for route, k in zip(decided, kinds, strict=True)
                        if k == kind], **of_kind}
            for kind, of_kind in settings.items() if kind in kinds]


def routing_table(model: nn.Module, routing: str = "role") -> str:
    """Return one line per trainable parameter: track, shape, name, reason."""
    return "\n".join(f"{track:<7}{str(tuple(p.shape)):<20}{name:<50} {reason}"
                     for name, p, track, reason, _ in routes(model, routing))
