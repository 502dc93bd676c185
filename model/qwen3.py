"""A small Qwen3 language model, Yang et al. 2025, arXiv 2505.09388: transformers' own classes."""

import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["Qwen3"]

# For tests.
TINY = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 24,
        "max_position_embeddings": 16}

UNUSED = ("PIL", "scipy", "torchvision")  # for transformers' image losses: 50 MB of memory


class Qwen3(nn.Module):
    """inputs (batch, sequence) token ids -> logits (batch, sequence, vocab_size); causal, RoPE.

    The defaults are the three-layer model of the paper's README 3.1; sizes have their names in
    transformers. Raises ValueError for a size below 1, query heads that key heads do
    not divide, an odd head_dim, a rope_theta <= 0 or an attention_dropout outside [0, 1).
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 512,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        num_key_value_heads: int = 4,
        head_dim: int = 128,
        intermediate_size: int = 2048,
        max_position_embeddings: int = 255,
        rope_theta: float = 10000.0,
        tie_word_embeddings: bool = True,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {
            "vocab_size": vocab_size, "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers, "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_key_value_heads, "head_dim": head_dim,
            "intermediate_size": intermediate_size,
            "max_position_embeddings": max_position_embeddings,
        }
        _check(sizes, rope_theta, attention_dropout)
        with hidden(*UNUSED):
            from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(
            **sizes, tie_word_embeddings=tie_word_embeddings, attention_dropout=attention_dropout,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            use_cache=False, attn_implementation="sdpa",
        )
        self.network = Qwen3ForCausalLM(config)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix (vocab_size, hidden_size); the token table itself if tied."""
        return self.network.lm_head.weight

    def features(self, inputs: Tensor) -> Tensor:
        """The last hidden state after the final norm, (batch, sequence, hidden_size)."""
        # The causal mask only. Without the argument transformers would look for padding, which
        # synchronizes with the device.
        return self.network.model(input_ids=inputs, attention_mask={"full_attention": None},
                                  use_cache=False).last_hidden_state

    def layers(self) -> list[nn.Module]:
        """The transformer blocks, in order; FSDP shards each by itself."""
        return list(self.network.model.layers)

    def compile(self, *args, **kwargs) -> None:
        """Compile the network itself, so that `features` runs compiled too."""
        self.network.model.compile(*args, **kwargs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        return self.features(inputs) @ self.head_weight.T

    def roles(self) -> dict[str, str]:
        """Parameter name -> "hidden" (projections), "embedding", "head" (if untied), "vector"."""
        roles = {}
        for name, p in self.named_parameters():
            known = {"network.model.embed_tokens.weight": "embedding",
                     "network.lm_head.weight": "head"}
            roles[name] = known.get(name, "hidden" if p.ndim == 2 else "vector")
        return roles


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Inside, packages that are not imported yet appear not to be installed. No effect once
    transformers is imported, because it looks for them only then."""
    too_late = "transformers" in sys.modules
    absent = [name for name in packages if name not in sys.modules and not too_late]
    modules: MutableMapping[str, Any] = sys.modules
    modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            modules.pop(name)


def _check(sizes: dict[str, int], rope_theta: float, attention_dropout: float) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be >= 1, got {size}")
    if sizes["num_attention_heads"] % sizes["num_key_value_heads"]:
        raise ValueError(f"num_attention_heads {sizes['num_attention_heads']} is not a multiple of "
                         f"num_key_value_heads {sizes['num_key_value_heads']}")
    if sizes["head_dim"] % 2:
        raise ValueError(f"head_dim must be even for rotary positions, got {sizes['head_dim']}")
    if not rope_theta > 0:
        raise ValueError(f"rope_theta must be > 0, got {rope_theta}")
    if not 0 <= attention_dropout < 1:
        raise ValueError(f"attention_dropout must be in [0, 1), got {attention_dropout}")
