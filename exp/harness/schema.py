"""Signatures as schema: the keys and types that a table accepts, from a callable's signature."""

import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from exp.harness.toml import shown

LARGEST = (2 - 2**-23) * 2.0**127  # finite float32
MAY_BE_INFINITE = ("kl_clip",)  # K-FAC's; inf: no clipping


def keywords(target: Callable, given_by_code: Iterable[str] = ()) -> dict[str, inspect.Parameter]:
    """Return the parameters of `target` that a configuration may set, annotations evaluated."""
    hints = _hints(target)
    parameters = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name not in given_by_code:
            annotation = hints.get(name, parameter.annotation)
            parameters[name] = parameter.replace(annotation=annotation)
    return parameters


def problems(
    table: str, settings: Mapping, accepted: Mapping[str, inspect.Parameter], extra: Iterable = ()
) -> list[str]:
    """Return one message per unknown, missing or mistyped key of `settings`, and per number that is
    not finite in float32, unless it is the signature's default. Keys in `extra` are not checked."""
    messages = []
    names = [shown(key) for key in (*accepted, *extra)]
    for key, value in settings.items():
        if key in extra:
            continue
        if key not in accepted:
            messages.append(f"[{table}] unknown key {key!r}.{nearest(key, names)} Accepted: "
                         f"{', '.join(names)}")
        elif not conforms(value, accepted[key].annotation):
            expected = describe(accepted[key].annotation)
            messages.append(f"[{table}] {key} must be {expected}, got {value!r}")
        elif not (is_finite(value) or value == accepted[key].default
                  or (key in MAY_BE_INFINITE and value == math.inf)):
            messages.append(f"[{table}] {key} must be finite in float32, got {value!r}")
    for key, parameter in accepted.items():
        if parameter.default is parameter.empty and key not in settings:
            messages.append(f"[{table}] missing key {key!r}. Accepted: {', '.join(names)}")
    return messages


def defaults(accepted: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the defaults of the parameters, except values that TOML cannot express (None,
    functions, classes)."""
    return {name: list(p.default) if isinstance(p.default, tuple) else p.default
            for name, p in accepted.items() if _in_toml(p.default)}


def _in_toml(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_in_toml, value))
    return type(value) in (bool, int, float, str)  # not isinstance: an IntEnum is no TOML value


def is_finite(value: Any) -> bool:
    """Whether every number of a TOML value is finite in float32, in which training computes."""
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, int | float) or abs(value) <= LARGEST


def nearest(name: str, names: Iterable[str]) -> str:
    """" Did you mean ...?" with the closest of `names`, or an empty string."""
    close = get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def conforms(value: Any, annotation: Any) -> bool:
    """Whether a TOML value fits an annotation; an int passes for a float, a bool never for an int.

    A parameter without annotation accepts any value.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in (Any, inspect.Parameter.empty):
        return True
    if origin in (Union, types.UnionType):
        return any(conforms(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin in (tuple, list) or annotation in (tuple, list):
        return _conforms_array(value, origin or annotation, args)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return annotation in (bool, str) and isinstance(value, annotation)


def describe(annotation: Any) -> str:
    """An annotation in words: "one of 'a', 'b'", "a number", "an array of 2"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin in (Union, types.UnionType):
        writable = [arg for arg in args if arg is not types.NoneType and arg.__module__ != "torch"]
        return " or ".join(dict.fromkeys(describe(arg) for arg in writable))
    if origin is tuple and Ellipsis not in args:
        return f"an array of {len(args)} ({', '.join(describe(arg) for arg in args)})"
    if (origin is list or origin is tuple) and args:
        return f"an array, each {describe(args[0])}"
    if annotation in (list, tuple):
        return "an array"
    return {float: "a number", int: "a whole number", bool: "true or false",
            str: "a string"}.get(annotation, str(annotation))


def _conforms_array(value: Any, kind: type, args: tuple) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if not args:
        return True
    if kind is list or args[-1] is Ellipsis:
        return all(conforms(item, args[0]) for item in value)
    return len(value) == len(args) and all(map(conforms, value, args))


def _hints(target: Callable) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # an annotation that is imported under TYPE_CHECKING only
        return {}
