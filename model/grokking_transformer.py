"""The transformer of the grokking literature: no LayerNorm, no attention biases, raw matrices.

After Nanda et al. 2023, arXiv 2301.05217, appendix A; sizes and scales as in dmf-archive/ARS.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GrokkingTransformer"]

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


class GrokkingTransformer(nn.Module):
    """tokens (batch, sequence) -> logits (batch, vocab_size) of the last position.

    Every matrix starts as randn / sqrt(d_model), the unembedding as randn / sqrt(vocab_size),
    biases at zero. Attention is causal. Raises ValueError for a size below 1.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 128,
        num_heads: int = 4,
        d_head: int = 32,
        d_mlp: int = 512,
        num_layers: int = 1,
        sequence_length: int = 3,
        activation: Literal["relu", "gelu"] = "relu",
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "d_model": d_model, "num_heads": num_heads,
                 "d_head": d_head, "d_mlp": d_mlp, "num_layers": num_layers,
                 "sequence_length": sequence_length}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
        self.W_E = nn.Parameter(torch.randn(d_model, vocab_size) / d_model**0.5)
        self.W_pos = nn.Parameter(torch.randn(sequence_length, d_model) / d_model**0.5)
        self.blocks = nn.ModuleList(
            Block(d_model, num_heads, d_head, d_mlp, activation) for _ in range(num_layers))
        self.W_U = nn.Parameter(torch.randn(d_model, vocab_size) / vocab_size**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the last position; the last block computes no other query.

        Raises ValueError for more tokens than positions (a single one would be broadcast).
        """
        if tokens.shape[1] > len(self.W_pos):
            raise ValueError(f"{tokens.shape[1]} tokens, but sequence_length {len(self.W_pos)}")
        # Embedding lookup, not column indexing: its backward pass is many times faster.
        x = F.embedding(tokens, self.W_E.t()) + self.W_pos[: tokens.shape[1]]
        for block in self.blocks[:-1]:
            x = block(x, queries=tokens.shape[1])
        x = self.blocks[-1](x, queries=1)
        return x[:, -1] @ self.W_U

    def attention_layers(self) -> list["Block"]:
        """The blocks: W_Q, W_K, and `max_logits` for an optimizer that watches the logits."""
        return list(self.blocks)

    def roles(self) -> dict[str, str]:
        """Parameter name -> "hidden", "embedding", "head" or "vector"."""
        known = {"W_E": "embedding", "W_pos": "embedding", "W_U": "head"}
        return {name: known.get(name, "hidden" if p.ndim >= 2 else "vector")
                for name, p in self.named_parameters()}


class Block(nn.Module):
    """x (batch, sequence, d_model) -> its last `queries` positions after attention and MLP.

    max_logits: None, or a tensor (heads,) that training passes raise to the largest logits seen.
    """

    def __init__(self, d_model: int, num_heads: int, d_head: int, d_mlp: int,
                 activation: str) -> None:
        super().__init__()
        scale = d_model**-0.5
        self.activation = ACTIVATIONS[activation]
        self.max_logits: Tensor | None = None
        self.W_Q = nn.Parameter(torch.randn(num_heads, d_head, d_model) * scale)
        self.W_K = nn.Parameter(torch.randn(num_heads, d_head, d_model) * scale)
        self.W_V = nn.Parameter(torch.randn(num_heads, d_head, d_model) * scale)
        self.W_O = nn.Parameter(torch.randn(d_model, num_heads * d_head) * scale)
        self.W_in = nn.Parameter(torch.randn(d_mlp, d_model) * scale)
        self.b_in = nn.Parameter(torch.zeros(d_mlp))
        self.W_out = nn.Parameter(torch.randn(d_model, d_mlp) * scale)
        self.b_out = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor, queries: int) -> Tensor:
        """Residual attention, then residual MLP, of the last `queries` positions."""
        last = x[:, x.shape[1] - queries:]
        x = last + self.attention(last, x)
        hidden = self.activation(F.linear(x, self.W_in, self.b_in))
        return x + F.linear(hidden, self.W_out, self.b_out)

    def attention(self, last: Tensor, x: Tensor) -> Tensor:
        """Causal attention of the positions `last` of x to all of x, all heads in one product."""
        heads, d_head, d_model = self.W_Q.shape
        q = F.linear(last, self.W_Q.reshape(-1, d_model)).unflatten(-1, (heads, d_head))
        k = F.linear(x, self.W_K.reshape(-1, d_model)).unflatten(-1, (heads, d_head))
        v = F.linear(x, self.W_V.reshape(-1, d_model)).unflatten(-1, (heads, d_head))
        # (batch, query, key, head): the sequence is short, so products beat a fused kernel.
        scores = (q.unsqueeze(2) * k.unsqueeze(1)).sum(-1) / d_head**0.5
        if last.shape[1] > 1:
            future = torch.ones(last.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
            future = future.triu(x.shape[1] - last.shape[1] + 1)
            scores = scores.masked_fill(future[:, :, None], -torch.inf)
        if self.max_logits is not None and self.training:
            self.max_logits = self.max_logits.maximum(scores.detach().amax((0, 1, 2)))
        weights = scores.softmax(2)
        mixed = (weights.unsqueeze(-1) * v.unsqueeze(1)).sum(2)
        return F.linear(mixed.flatten(2), self.W_O)
