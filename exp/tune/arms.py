"""Arms: a rule for matrices with AdamW for the other parameters, its search axes and defaults.

All arms are searched on the same axes, as far as their rules have them:

    lr          rate of the rule, from a 30th to 30 times its default
    decay_time  time constant of weight decay, 1 / (lr weight_decay) steps, in units of the horizon
    aux_lr      rate of AdamW for the other parameters, from a 30th to 30 times AdamW's default
    memory      one level for all momenta, including those of AdamW for the other parameters

and each on at most one further axis of its own. Values that arms.toml states for an arm are fixed,
except lr, weight_decay and momenta, which replace the constructor's defaults in the search.
`search = { eps = [1e-12, 1e-6] }` states an axis for a rule whose file declares none.
"""

import importlib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exp.harness.config import wrappers
from exp.harness.errors import ConfigError
from exp.harness.toml import read_toml
from exp.tune.cells import ARMS, read_ablation
from exp.tune.options import BASELINE, LADDER
from exp.tune.space import Choice, Range, Space, around, axis_of, significant
from optimizer import available_optimizers, is_wrapper, optimizer_class
from optimizer.parts.delta import Delta

AUX_LR = 1e-3  # torch's default of AdamW
DECAY_TIME = Range(0.01, 10.0)  # horizons: from a hundredth of a run to almost no decay
NO_DECAY = 1e6  # horizons: stands for a weight decay of 0
# Level -> (betas, momentum). A rule with momentum and beta2 takes beta2 from the betas.
MEMORY = {"fast": ((0.9, 0.95), 0.9), "middle": ((0.9, 0.98), 0.95),
          "slow": ((0.95, 0.999), 0.98)}
OWN = "own"  # level of trial 0: the rule's default momenta
FOUND = AUX_LR  # decay_time assumes this rate where the rule estimates one, and lr multiplies it
COMMON = ("lr", "weight_decay", "betas", "momentum", "beta2")


@dataclass(frozen=True)
class Arm:
    """An optimizer with its search space. optimizer: the `[optimizer]` table before the search.
    axes: the search space. defaults: axis -> value of trial 0."""

    name: str
    optimizer: dict
    axes: Space
    defaults: dict
    gradient_evaluations_per_step: float

    def record(self) -> dict:
        """Return the arm's fields for the JSON of a board, without its name and studies."""
        content = {key: value for key, value in asdict(self).items() if key != "name"}
        return content | {"axes": {key: axis.record() for key, axis in self.axes.items()}}

    @classmethod
    def of(cls, name: str, record: dict) -> "Arm":
        """Return the arm of a record, the inverse of `record`."""
        axes = {key: axis_of(axis) for key, axis in record["axes"].items()}
        return cls(name, record["optimizer"], axes, record["defaults"],
                   record["gradient_evaluations_per_step"])

    def settings(self, params: dict, cap: int) -> dict:
        """Return the `[optimizer]` table of a trial. cap: gradient evaluations of the horizon."""
        table = json.loads(json.dumps(self.optimizer))
        keywords = _keywords(table["name"]) | table
        horizon = cap / self.gradient_evaluations_per_step
        rest = table.get("adamw", {})
        estimated = FOUND if table["name"] in read_toml(ARMS)["estimates_rate"] else 1.0
        for part, lr, rate, allowed in (
                (table, params["lr"], estimated * params["lr"], keywords),
                (rest, params["aux_lr"], params["aux_lr"], dict.fromkeys(COMMON[:3]))):
            part["lr"] = lr
            if "weight_decay" in allowed and not (part is table and _forbids_decay(table)):
                part["weight_decay"] = significant(1 / (params["decay_time"] * horizon * rate))
            part |= _momenta(params.get("memory", OWN), allowed, part.get("name", ""))
        for key in params.keys() - {"lr", "decay_time", "aux_lr", "memory"}:
            *tables, last = key.split(".")
            place = table[tables[0]] if tables else table
            place[last] = params[key]
        return table | {"routing": "role", "adamw": rest}


def arm_named(name: str, cap: int, own: Mapping[str, dict] | None = None) -> Arm:
    """Return the arm of a name in `own`, arms.toml or the ablation, or of an optimizer's name. cap:
    gradient evaluations of the horizon.

    Raises ConfigError for an unknown name, a wrapper, a rule without a default lr, and an invalid
    search range.
    """
    table = dict(_table(name, own or {}))
    searched = table.pop("search", {})
    defaults = {**_keywords(table["name"]), **table}
    if not isinstance(defaults.get("lr"), float):
        raise ConfigError(f"{name} has no default lr to search around: set it in [arms.NAME]"
                          " with name = \"" + table["name"] + "\" in a TOML file for --arms")
    evaluations = _cost(table)
    lr, decay = defaults["lr"], defaults.get("weight_decay", 0.0)
    time = evaluations / (lr * decay * cap) if decay else NO_DECAY
    momenta = [_usual(table["name"], key, defaults[key]) for key in COMMON[2:]
               if key in _keywords(table["name"])]
    axes: dict[str, Range | Choice] = {
        "lr": around(lr), "decay_time": DECAY_TIME, "aux_lr": around(AUX_LR),
        "memory": Choice(tuple(MEMORY), _nearest(momenta))}
    values = {"lr": lr, "decay_time": significant(time), "aux_lr": AUX_LR, "memory": OWN}
    key, axis, value = _stated_axis(name, searched, defaults) if searched else _own_axis(table)
    if axis is not None:
        axes[key], values[key] = axis, value
    return Arm(name, table, axes, values, evaluations)


def own_arms(path: Path) -> dict[str, dict]:
    """Read the arms of a user's TOML file: [arms.NAME] tables as in arms.toml. Raises ConfigError
    for a file without any, a name that is taken, and a table that names no optimizer."""
    try:
        arms = read_toml(path).get("arms")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(arms, dict) or not arms:
        raise ConfigError(f"{path} has no table [arms.NAME]")
    for name, table in arms.items():
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            raise ConfigError(f"{path}: [arms.{name}] needs name = \"...\", its optimizer")
        if name in read_toml(ARMS)["arms"] or name in read_ablation().arms():
            raise ConfigError(f"{path}: {name!r} is already an arm of {ARMS.name}")
        if not isinstance(table.get("search", {}), dict):
            raise ConfigError(f"{path}: [arms.{name}] search must be a table of ranges")
    return arms


def all_arms() -> list[str]:
    """Return the names of all arms: those of arms.toml, and each optimizer file that is no wrapper,
    and has no modes as arms there."""
    stated = read_toml(ARMS)["arms"]
    modes = {table["name"] for name, table in stated.items() if name.startswith(table["name"])}
    files = [name for name in available_optimizers() if name not in modes
             and optimizer_class(name).__module__.startswith("optimizer.")
             and not is_wrapper(optimizer_class(name))]
    return [*stated, *(name for name in files if name not in stated)]


def _table(name: str, own: Mapping[str, dict]) -> dict:
    """Return an arm's `[optimizer]` table from `own`, arms.toml or the ablation; of an optimizer's
    name, the table with that name alone. Raises ConfigError for an unknown name or a wrapper."""
    stated, cells = {**read_toml(ARMS)["arms"], **own}, read_ablation().arms()
    name = BASELINE if name in LADDER else name
    if name in stated:
        return stated[name]
    if name in cells:
        return read_ablation().arm_settings(cells[name])
    try:
        if is_wrapper(optimizer_class(name)):
            raise ConfigError(f"{name!r} is a wrapper, not an arm; arms: {', '.join(stated)}")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return {"name": name}


def _keywords(name: str) -> dict[str, Any]:
    """Return the constructor's arguments with their defaults."""
    return {key: parameter.default for key, parameter
            in inspect.signature(optimizer_class(name)).parameters.items()}


def _cost(table: dict) -> float:
    """Return the gradient evaluations per step that the files declare, the maximum over the rule
    and its wrappers. A rule that takes its second gradient every k-th step has 1 + 1 / k."""
    cost = 1.0
    for rule, stated in ((table["name"], table), *((key, table[key]) for key in wrappers(table))):
        declared = _declared(rule, "COST", {"gradient_evaluations": 1})["gradient_evaluations"]
        k = stated.get("k", _keywords(rule).get("k"))
        cost = max(cost, (1 + 1 / k if k else 1) if declared > 1 and k is not None else declared)
    return cost


def _own_axis(table: dict) -> tuple[str, Range | None, float]:
    """Return the arm's own axis as (key, range, default): the first number outside COMMON in the
    SEARCH_SPACE of the rule or a wrapper. ("", None, 0) if there is none."""
    for prefix, rule, stated in [("", table["name"], table), *(
            (f"{key}.", key, table[key]) for key in wrappers(table))]:
        for key, space in _declared(rule, "SEARCH_SPACE", {}).items():
            ranged = isinstance(space, tuple) and key not in (*COMMON, *stated) and "." not in key
            if ranged and (default := _keywords(rule)[key]):
                return prefix + key, around(default, *space[:2]), default
    return "", None, 0.0


def _stated_axis(name: str, searched: dict, defaults: dict) -> tuple[str, Range, float]:
    """Return the axis that an arm states as `search`: (key, range, default). Raises ConfigError if
    it is invalid."""
    (key, ends), *more = searched.items()
    if more or key in COMMON:
        raise ConfigError(f"[arms.{name}] search must name one hyperparameter of the optimizer: "
                          "lr, weight decay and momenta are searched for every arm")
    numbers = isinstance(ends, list) and len(ends) == 2 and all(
        isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if not (numbers and 0 < ends[0] < ends[1] < math.inf):
        raise ConfigError(f"[arms.{name}] search: {key} must be [low, high], 0 < low < high, "
                          f"got {ends!r}")
    default = defaults.get(key)
    if not isinstance(default, float) or not ends[0] <= default <= ends[1]:
        raise ConfigError(f"[arms.{name}] search: {key} must have a float default in the range, "
                          f"got {default!r}")
    return key, Range(float(ends[0]), float(ends[1])), default


def _declared(rule: str, constant: str, otherwise: Any) -> Any:
    module = importlib.import_module(optimizer_class(rule).__module__)
    return getattr(module, constant, otherwise)


def _forbids_decay(table: dict) -> bool:
    """Whether a hook in the table requires a rule without weight decay, as Hyperball does."""
    hooks = [optimizer_class(name) for name in wrappers(table)]
    return any(issubclass(cls, Delta) and not cls.accepts_decay for cls in hooks)


def _usual(name: str, key: str, value: Any) -> Any:
    """Convert a momentum between the rule's convention and the share that is kept. Scion's is the
    share of the new gradient."""
    inverted = key == "momentum" and "scion" in name.lower()
    return significant(1 - value) if inverted else value


def _momenta(level: str, keywords: dict, name: str) -> dict:
    """Return a level's momenta, those that the rule has. Of more than two betas, the first two are
    set."""
    if level == OWN:
        return {}
    betas, momentum = MEMORY[level]
    further = (keywords.get("betas") or ())[2:]
    values = {"betas": [*betas, *further], "momentum": _usual(name, "momentum", momentum),
              "beta2": betas[1]}
    return {key: value for key, value in values.items() if key in keywords}


def _nearest(momenta: list) -> int:
    """Return the index of the level whose slowest average is nearest to the rule's."""
    slowest = max([beta for value in momenta for beta in (
        value if isinstance(value, tuple | list) else [value]) if beta < 1], default=0.9)
    levels = [max(betas) if any(isinstance(m, tuple | list) for m in momenta) else momentum
              for betas, momentum in MEMORY.values()]
    return min(range(len(levels)),
               key=lambda level: abs(math.log((1 - levels[level]) / (1 - slowest))))
