"""The transformer of the grokking literature: no LayerNorm, no attention biases, raw matrices.

After Nanda et al. 2023, arXiv 2301.05217, appendix A; sizes and scales as in dmf-archive/ARS.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GrokkingTransformer"]

# For tests.
TINY = {"vocab_size": 12, "d_model": 8, "d_head": 3, "num_heads": 2, "d_mlp": 16,
        "num_layers": 2}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


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
        """Logits of the last position; the last block computes the query of that position only.

        Raises ValueError for more tokens than positions (a single position would be broadcast).
        """
        if tokens.shape[1] > len(self.W_pos):
            raise ValueError(f"the input has {tokens.shape[1]} tokens, more than sequence_length "
                             f"{len(self.W_pos)}")
        sequence = tokens.shape[1]
        # x: the table of all (token, position) vectors; rows: its row for each token of the batch.
        # The first block multiplies the table or the vectors of the batch, whichever are fewer.
        # F.embedding instead of indexing, because its backward pass is many times faster.
        x = (self.W_E.t()[:, None] + self.W_pos[:sequence]).flatten(0, 1)
        rows = tokens * sequence + torch.arange(sequence, device=tokens.device)
        index: Tensor | None = rows
        if len(tokens) <= self.W_E.shape[1]:
            x, index = F.embedding(rows, x), None
        for block in self.blocks[:-1]:
            x, index = block(x, sequence, index), None
        x = self.blocks[-1](x, 1, index)
        return x[:, -1] @ self.W_U

    def attention_layers(self) -> list[nn.Module]:
        """The blocks, with W_Q, W_K and `max_logits`, for optimizers that bound attention logits.
        """
        return list(self.blocks)

    def roles(self) -> dict[str, str]:
        """Parameter name -> "hidden", "embedding", "head" or "vector"."""
        known = {"W_E": "embedding", "W_pos": "embedding", "W_U": "head"}
        return {name: known.get(name, "hidden" if p.ndim >= 2 else "vector")
                for name, p in self.named_parameters()}


class Block(nn.Module):
    """x (batch, sequence, d_model) -> its last `queries` positions after attention and MLP.

    With an index (batch, sequence), x (rows, d_model) is a table into which it points; keys and
    values are then computed once per row of the table.

    max_logits: None, or a tensor (heads,) in which training passes keep the largest logits so far.
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

    def forward(self, x: Tensor, queries: int, index: Tensor | None = None) -> Tensor:
        """Residual attention, then residual MLP, of the last `queries` positions."""
        if index is None:
            last = x[:, x.shape[1] - queries:]
        else:
            last = F.embedding(index[:, index.shape[1] - queries:], x)
        x = last + self.attention(last, x, index)
        hidden = self.activation(F.linear(x, self.W_in, self.b_in))
        return x + F.linear(hidden, self.W_out, self.b_out)

    def attention(self, last: Tensor, x: Tensor, index: Tensor | None) -> Tensor:
        """Causal attention of the last positions to all of x, all heads in one product."""
        heads, d_head, d_model = self.W_Q.shape
        q, k, v = (F.linear(rows, W.reshape(-1, d_model))
                   for rows, W in ((last, self.W_Q), (x, self.W_K), (x, self.W_V)))
        if index is not None:
            k, v = F.embedding(index, k), F.embedding(index, v)
        q, k, v = (rows.unflatten(-1, (heads, d_head)) for rows in (q, k, v))
        # (batch, query, key, head): the sequence is short, so products beat a fused kernel.
        scores = (q.unsqueeze(2) * k.unsqueeze(1)).sum(-1) / d_head**0.5
        if q.shape[1] > 1:
            future = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=x.device)
            future = future.triu(k.shape[1] - q.shape[1] + 1)
            scores = scores.masked_fill(future[:, :, None], -torch.inf)
        if self.max_logits is not None and self.training:
            self.max_logits = self.max_logits.maximum(scores.detach().amax((0, 1, 2)))
        weights = scores.softmax(2)
        mixed = (weights.unsqueeze(-1) * v.unsqueeze(1)).sum(2)
        return F.linear(mixed.flatten(2), self.W_O)
