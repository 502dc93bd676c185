"""TOML: read a file, apply an override, write settings."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a file. Raises ValueError, naming the file, if it cannot be read or parsed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # skips a byte-order mark
    except FileNotFoundError as error:
        raise ValueError(f"no config file {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def apply_override(settings: dict, override: str) -> None:
    """Apply one `table.key=value`, the value in TOML syntax, in place; `table={key = value}`
    replaces the whole table. Raises ValueError if `override` is malformed."""
    path, equals, text = override.partition("=")
    *tables, key = path.strip().split(".")
    override = shown(override)
    if not equals or not (tables or text.lstrip().startswith("{")):
        raise ValueError(f"--set {override}: write table.key=value, or table={{key = value}}")
    try:
        value, = tomllib.loads(f"value = {text}").values()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--set {override}: {text!r} is not a TOML value"
                          f" ({_in_toml_syntax(shown(path), text)})") from error
    for table in tables:
        settings = settings.setdefault(table, {})
        if not isinstance(settings, dict):
            raise ValueError(f"--set {override}: {shown(table)} is not a table")
    settings[key] = value


def shown(text: str) -> str:
    """Return a user's text for a one-line message: its repr if a character is not printable."""
    return text if text.isprintable() else repr(text)


def _in_toml_syntax(path: str, text: str) -> str:
    """Suggest the TOML syntax for `text`, a number or else a string."""
    try:
        return f"write the number as {path}={float(text)!r}"  # ".01", "1.", "007"
    except ValueError:
        return f"strings need quotes: {path}='\"{shown(text)}\"'"


def drop_key(settings: dict, path: str) -> None:
    """Drop the key or table `table.key` in place. Raises ValueError if it does not exist."""
    *tables, key = path.strip().split(".")
    path = shown(path)
    for table in tables:
        settings = settings.get(table, {})
        if not isinstance(settings, dict):
            raise ValueError(f"--unset {path}: {shown(table)} is not a table")
    if key not in settings:
        raise ValueError(f"--unset {path}: unknown key {key!r}. Keys: "
                         f"{', '.join(map(shown, settings))}")
    del settings[key]


def overrides_of(settings: dict[str, Any], prefix: str = "") -> tuple[str, ...]:
    """Settings as `table.key=value` overrides, in order."""
    return tuple(word for key, value in settings.items() for word in (
        overrides_of(value, f"{prefix}{key}.") if isinstance(value, dict)
        else (f"{prefix}{key}={_toml_value(value)}",)))


def to_toml(settings: dict[str, Any], prefix: str = "") -> str:
    """Settings as TOML text: numbers, strings, booleans, arrays, and tables of these."""
    lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in settings.items()
             if not isinstance(value, dict)]
    text = "".join(f"{line}\n" for line in lines)
    for key, value in settings.items():
        if isinstance(value, dict):
            path = prefix + _toml_key(key)
            text += f"\n[{path}]\n" + to_toml(value, f"{path}.")
    return text


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | str) else repr(value)
