"""Modular arithmetic: all tuples of operands, split at random into training and evaluation.

Power et al. 2022, arXiv 2201.02177. The parity of n bits is addition with p = 2 and n terms.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from data.batches import Batches

Operation = Literal["addition", "subtraction", "multiplication", "division", "exponentiation",
                    "gcd"]
LARGEST = 2**24  # examples, to bound their memory


@dataclass(frozen=True)
class Modular:
    """Tokens (examples, terms + 1) = (operands, "=") and labels (examples,), int64; "=" is token
    p. digest: the SHA-256 of all tokens and labels, in the order of the operands."""

    train: Batches
    eval: tuple[Tensor, Tensor]
    vocab_size: int
    digest: dict[str, str]


def modular(
    batch_size: int = 512, p: int = 113, fraction: float = 0.3,
    operation: Operation = "addition", terms: int = 2, *, seed: int, device: torch.device,
) -> Modular:
    """All p**terms tuples of operands below p. int(fraction * their number), chosen by the seed,
    are for training. The label is ((a o b) o c ...) mod p, o the operation.

    division: by nonzero operands only, p prime. exponentiation: 0**0 = 1. gcd: gcd(0, 0) = 0.
    A model needs sequence_length = terms + 1.
    Raises ValueError for an unknown operation, p or terms below 2, division modulo a p that is not
    prime, more than LARGEST tuples, or a fraction that leaves either side empty.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation must be one of {list(OPERATIONS)}, got {operation!r}")
    if p < 2 or terms < 2:
        raise ValueError(f"p and terms must be >= 2, got p = {p}, terms = {terms}")
    if terms > LARGEST.bit_length() or p**terms > LARGEST:
        raise ValueError(f"p**terms must be <= {LARGEST}, got {p}**{terms}")
    if operation == "division" and any(p % n == 0 for n in range(2, int(p**0.5) + 1)):
        raise ValueError(f"division needs a prime p, got {p}")
    operands = torch.cartesian_prod(*[torch.arange(p)] * terms)
    if operation == "division":
        operands = operands[(operands[:, 1:] != 0).all(1)]
    labels = reduce(lambda a, b: OPERATIONS[operation](a, b, p), operands.unbind(1))
    examples = len(labels)
    count = int(fraction * examples) if 0 < fraction < 1 else 0
    if not 0 < count < examples:
        raise ValueError(f"fraction must leave training and evaluation examples, got {fraction}")
    tokens = torch.cat([operands, torch.full((examples, 1), p)], dim=1)
    listed = torch.cat([tokens, labels[:, None]], dim=1).numpy().tobytes()
    digest = hashlib.sha256(listed).hexdigest()
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(seed))
    tokens, labels = tokens[order].to(device), labels[order].to(device)
    train = Batches((tokens[:count], labels[:count]), batch_size, seed)
    return Modular(train, (tokens[count:], labels[count:]), p + 1, {"examples": digest})


def _power(a: Tensor, b: Tensor, p: int) -> Tensor:
    """a**b mod p, elementwise, by repeated squaring: products stay below p**2."""
    result = torch.ones_like(a)
    while b.any():
        result = torch.where(b % 2 == 1, result * a % p, result)
        a, b = a * a % p, b // 2
    return result


OPERATIONS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "addition": lambda a, b, p: (a + b) % p,
    "subtraction": lambda a, b, p: (a - b) % p,
    "multiplication": lambda a, b, p: a * b % p,
    # Fermat: b**(p - 2) is the inverse of b.
    "division": lambda a, b, p: a * _power(b, torch.full_like(b, p - 2), p) % p,
    "exponentiation": _power,
    "gcd": lambda a, b, p: torch.gcd(a, b),
}
