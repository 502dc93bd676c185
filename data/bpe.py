"""Byte-level BPE, Sennrich et al. 2016, arXiv 1508.07909: trained, and applied in parts of text."""

import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

EOT, PAD = "<|endoftext|>", "<pad>"
SMALLEST = 256 + 2  # vocabulary: every byte and the two special tokens
PIECES = 1000  # lines encoded at once: an encoding takes a hundred times the memory of its text


def lines(text: str) -> list[str]:
    """The text cut where encoding it in pieces gives the same tokens as encoding it whole: after a
    line's end, before a single space and a visible character. There a pre-token ends in any case:
    white space is joined except for the last space before a word."""
    return re.split(r"(?<=\n)(?= \S)", text)


def trained(texts: Iterable[str], vocab_size: int):
    """A tokenizer for these texts; special tokens that occur in a text are text to `encode`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOT, PAD], show_progress=False,
        # The published recipe left it out: a byte unseen in training would vanish from the text.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer, pieces: Sequence[str], name: str, at_once: int = PIECES
           ) -> Iterator[list[int]]:
    """Token ids of each piece of text, with a progress bar on a terminal."""
    starts = range(0, len(pieces), at_once)
    for start in tqdm(starts, f"tokenizing {name}", leave=False, disable=None):
        for encoding in tokenizer.encode_batch_fast(pieces[start:start + at_once]):
            yield encoding.ids


def token_bytes(tokenizer) -> Tensor:
    """UTF-8 bytes that each token stands for, (vocab_size,): in byte-level BPE each character is
    one byte; special tokens stand for none."""
    lengths = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if token in (EOT, PAD) else len(token)
    return lengths
