"""Byte-level BPE, Sennrich et al. 2016, arXiv 1508.07909: training, and encoding text in pieces."""

import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

EOT, PAD = "<|endoftext|>", "<pad>"
SMALLEST = 256 + 2  # vocabulary: every byte and the two special tokens
PIECES = 1000  # lines per call: an encoding takes a hundred times the memory of its text


def lines(text: str) -> list[str]:
    """Split a text where encoding the pieces gives the same tokens as encoding the whole: after a
    newline that a single space and a visible character follow. A pre-token always ends there,
    because the last space before a word belongs to the word."""
    return re.split(r"(?<=\n)(?= \S)", text)


def trained(texts: Iterable[str], vocab_size: int):
    """Train a tokenizer on `texts`. It encodes special tokens that occur in a text as text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOT, PAD], show_progress=False,
        # Not in the published recipe, where a byte unseen in training vanishes from the text.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer, pieces: Sequence[str], name: str, at_once: int = PIECES
           ) -> Iterator[list[int]]:
    """Yield the token ids of each piece of text, `at_once` pieces per call of the tokenizer, with a
    progress bar on a terminal."""
    starts = range(0, len(pieces), at_once)
    for start in tqdm(starts, f"tokenizing {name}", leave=False, disable=None):
        for encoding in tokenizer.encode_batch_fast(pieces[start:start + at_once]):
            yield encoding.ids


def token_bytes(tokenizer) -> Tensor:
    """Number of UTF-8 bytes per token, (vocab_size,) int64: in byte-level BPE each character stands
    for one byte; special tokens have 0."""
    lengths = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if token in (EOT, PAD) else len(token)
    return lengths
