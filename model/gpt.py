"""The GPT of modded-nanogpt's track 3 (github.com/KellerJordan/modded-nanogpt), at any size.

Rotary positions: arXiv 2104.09864, on half of the dimensions; RMSNorm: 1910.07467; QK norm:
2010.04245; squared ReLU: 2109.08668; soft cap of the logits: 2408.00118, in track 3's form.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GPT"]

TINY = {"vocab_size": 20, "width": 16, "layers": 2, "head_width": 8}  # for tests

SOFT_CAP = 15.0
LOGIT_SCALE = 0.12 * 128**0.5  # of the attention logits, in units of 1 / sqrt(head_width)
LONGEST_PERIOD = 1024  # the rotary angles per position fall from 1 to 1 / 1024


class GPT(nn.Module):
    """tokens (batch, sequence) -> logits (batch, sequence, vocab_size), |logit| < 15; causal.

    Pre-norm blocks of attention and a squared-ReLU MLP four times as wide, with biases; RMSNorms
    with gains after the embedding, before every sublayer and before the head, which is not tied.
    Any sequence length, because positions are not learned.

    Embeddings start as N(0, 1), hidden matrices as N(0, 1 / (3 fan_in)) times `hidden_gain`, the
    last matrix of each sublayer (its projection) times `projection_gain` too, biases and head at 0.
    An optimizer that preserves matrix norms needs a projection_gain above 0.
    Raises ValueError for a size below 1, a width that head_width does not divide, a head_width
    that is no multiple of 4, or a negative gain.
    """

    def __init__(self, vocab_size: int, width: int = 64, layers: int = 3, head_width: int = 32,
                 hidden_gain: float = 1.0, projection_gain: float = 0.0) -> None:
        super().__init__()
        if min(vocab_size, width, layers, head_width) < 1 or width % head_width or head_width % 4:
            raise ValueError("vocab_size, width, layers and head_width must be >= 1, width a "
                             "multiple of head_width, and head_width a multiple of 4, got "
                             f"{vocab_size}, {width}, {layers}, {head_width}")
        if not (hidden_gain >= 0 and projection_gain >= 0):  # false for nan too
            raise ValueError("hidden_gain and projection_gain must be >= 0, got "
                             f"{hidden_gain}, {projection_gain}")
        self.head_width = head_width
        self.embed = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, head_width) for _ in range(layers))
        self.head = nn.Linear(width, vocab_size)
        self.embed_norm, self.head_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        roles = self.roles()
        for name, p in self.named_parameters():
            if name.endswith("bias") or name == "head.weight":
                nn.init.zeros_(p)
            elif roles[name] == "hidden":
                gain = hidden_gain * (projection_gain if ".project" in name else 1.0)
                nn.init.normal_(p, std=gain * (3 * p.shape[1]) ** -0.5)

    def forward(self, tokens: Tensor, only_features: bool = False) -> Tensor:
        """Logits of the next token at every position, in float32 or above. only_features: return
        the last hidden states (batch, sequence, width) instead, from which `logits` makes them."""
        x = norm(self.embed(tokens), self.embed_norm)
        rotation = rotary(tokens.shape[1], self.head_width, x)
        for block in self.blocks:
            x = block(x, rotation)
        return x if only_features else self.logits(x)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (..., vocab_size) of last hidden states (..., width)."""
        logits = self.head(norm(features, self.head_norm))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return SOFT_CAP * logits * (logits.square() + SOFT_CAP**2).rsqrt()

    def layers(self) -> list[nn.Module]:
        """The transformer blocks, in order; FSDP shards each by itself."""
        return list(self.blocks)

    def roles(self) -> dict[str, str]:
        """Parameter name -> "hidden", "embedding", "head" or "vector"."""
        known = {"embed.weight": "embedding", "head.weight": "head"}
        return {name: known.get(name, "hidden" if p.ndim == 2 else "vector")
                for name, p in self.named_parameters()}


class Block(nn.Module):
    """x (batch, sequence, width) -> the same after attention and MLP, each added to its input."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project_heads = nn.Linear(width, width)
        self.up, self.project_up = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """x after attention and MLP. rotation: (cos, sin) of `rotary`."""
        x = x + self.attention(norm(x, self.attention_norm), *rotation)
        return x + self.project_up(self.up(norm(x, self.mlp_norm)).relu().square())

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal attention with queries and keys of unit RMS; torch's fused kernels."""
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))
        q, k = (rotate(F.rms_norm(part, (self.head_width,)), cos, sin) for part in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True,
                                               scale=LOGIT_SCALE * self.head_width**-0.5)
        return self.project_heads(mixed.transpose(1, 2).flatten(2))


def norm(x: Tensor, layer: nn.RMSNorm) -> Tensor:
    """x / rms(x) * gain, with the gain in x's dtype, which torch's fused kernel requires."""
    return F.rms_norm(x, x.shape[-1:], layer.weight.to(x.dtype))


def rotary(length: int, head_width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (length, head_width / 2) of position times frequency; half of the frequencies
    are 0."""
    device, dtype = like.device, torch.promote_types(like.dtype, torch.float32)
    exponents = torch.linspace(0, 1, head_width // 4, device=device, dtype=dtype)
    frequencies = F.pad(LONGEST_PERIOD**-exponents, (0, head_width // 4))
    angles = torch.outer(torch.arange(length, device=device, dtype=dtype), frequencies)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + head_width / 2]) of x (..., length, head_width)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), -1)
