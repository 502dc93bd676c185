"""Checks of hyperparameters: each raises ValueError with the argument's name and value."""

from typing import Any, get_args

import torch

MOST_ITERATIONS = 1000  # upper limit per step; usual values are below ten


def one_number(**values: float) -> None:
    """Raise ValueError for a tensor that is not one number."""
    for name, value in values.items():
        if torch.is_tensor(value) and value.numel() != 1:
            raise ValueError(f"{name} must be one number, got a tensor of {value.numel()}")


def non_negative(**values: float) -> None:
    """Raise ValueError unless every value is a number >= 0 (NaN is not)."""
    one_number(**values)
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value!r}")


def fraction(**values: float) -> None:
    """Raise ValueError unless every value lies in [0, 1), as a decay rate must."""
    one_number(**values)
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value!r}")


def at_least(minimum: int, **values: int) -> None:
    """Raise ValueError unless every value is a whole number >= `minimum`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"{name} must be a whole number >= {minimum}, got {value!r}")


def iterations(**values: int) -> None:
    """Raise ValueError unless every value is a whole number from 1 to MOST_ITERATIONS."""
    at_least(1, **values)
    for name, value in values.items():
        if value > MOST_ITERATIONS:
            raise ValueError(f"{name} must be at most {MOST_ITERATIONS}, got {value!r}")


def pair_of_fractions(**values: tuple[float, float]) -> None:
    """Raise ValueError unless every value is two decay rates, as Adam's betas are."""
    for name, value in values.items():
        if len(value) != 2:
            raise ValueError(f"{name} must be two numbers, got {value!r}")
        fraction(**{f"{name}[{index}]": part for index, part in enumerate(value)})


def ordered(**values: tuple[float, float]) -> None:
    """Raise ValueError unless every value is two numbers, 0 <= the first <= the second."""
    for name, value in values.items():
        if len(value) != 2 or not 0 <= value[0] <= value[1]:
            raise ValueError(f"{name} must be two numbers, 0 <= first <= second, got {value!r}")


def choice(accepted: Any, **values: str) -> None:
    """Raise ValueError unless every value is one of the strings of the Literal `accepted`."""
    for name, value in values.items():
        if value not in get_args(accepted):
            raise ValueError(f"{name} must be one of {list(get_args(accepted))}, got {value!r}")
