"""The ladder's corpus as bytes or as BPE tokens: novels of 1839-1931 and prose of Microsoft's Win32
documentation.

The files are `ladder/{eltec,novels,docs}.txt.bz2`; data/sources/ladder.py makes those that are
missing from public repositories. Alternatives are the training text of Wikitext-2, and FineWeb as
GPT-2 tokens.
"""

import bz2
import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from data import DataError, bpe, cached, download, places, verify
from data.batches import Batches, seeded
from data.sources.fineweb import SHA256 as FINEWEB
from data.sources.fineweb import VOCAB_SIZE as GPT2
from data.sources.fineweb import fineweb
from data.sources.ladder import SOURCES, build
from data.wikitext2 import SHA256 as WIKITEXT2
from data.wikitext2 import texts as wikitext2_texts

FOLDER = "ladder"
SHA256 = {  # of each text
    "eltec": "9b1c7b61c4c13c704af099acd7bfc4b8b849ef0b71e9355165531f33e45a5b63",
    "novels": "34d2c6b8a6f23bc5debc1ab9296998339a3724ccb776a988e3b37ee982b9da0c",
    "docs": "efec4f5e49bc739b4c500ebe7ce1fa700aadb997da3d8aea8d043f73a19ba9de",
}
BLOCK = 2**16  # bytes
HELD_OUT = 64  # every 64th block, from the first, is never trained on
BYTES = 256  # vocabulary size for bytes
VOCAB_SIZES = (bpe.SMALLEST, 2**15)  # smallest and largest of a BPE
AT_ONCE = 8  # blocks per call of the tokenizer

Corpus = Literal["eltec+novels", "eltec+novels+docs", "eltec+docs", "wikitext2", "fineweb"]


@dataclass(frozen=True)
class Ladder:
    """train: batches of (inputs, targets), int64, (batch, sequence_length) each. eval: windows
    (windows, sequence_length + 1) of uint8 bytes or of BPE tokens (uint16 stored as int16); all but
    the first of a window are targets. eval_bytes: bytes of text in these targets. digest: text ->
    SHA-256."""

    train: "OnePass"
    eval: Tensor
    eval_bytes: int
    digest: dict[str, str]
    vocab_size: int


class OnePass(Batches):
    """Windows of a text in a random order that depends on the seed only. An epoch is its next
    `steps` batches, so that no window is used twice and runs of any length begin with the same
    batches.

    Raises ValueError for fewer windows than an epoch needs.
    """

    def __init__(self, windows: Tensor, batch_size: int, steps: int, seed: int) -> None:
        super().__init__((windows,), batch_size, seed)
        if steps < 1:
            raise ValueError(f"steps must be >= 1, got {steps}")
        self.examples = steps * batch_size
        self.most_epochs = len(windows) // self.examples
        if self.most_epochs < 1:
            raise ValueError(f"{steps} steps of {batch_size} windows are more than one pass over "
                             f"{len(windows)} windows: decrease steps or batch_size")

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, from batch `start` on. Raises ValueError after one pass."""
        if epoch >= self.most_epochs:
            raise ValueError(f"one pass has {self.most_epochs} epochs, got epoch {epoch + 1}")
        windows = self.tensors[0]
        order = torch.randperm(len(windows), generator=seeded("cpu", self.seed))
        rows = order[epoch * self.examples : (epoch + 1) * self.examples].to(windows.device)
        for batch in rows.split(self.batch_size)[start:]:
            yield pairs(windows[batch])


def ladder(
    batch_size: int = 32, steps: int = 250, corpus: Corpus = "eltec+novels",
    sequence_length: int = 128, eval_bytes: int = 2**19, vocab_size: int = BYTES, *, seed: int,
    device: torch.device,
) -> Ladder:
    """A corpus in non-overlapping windows of sequence_length + 1 tokens, on the device.

    The text is cut into blocks of 65,536 bytes. Those with an index of 0 mod 64 are held out;
    evenly spaced windows with about `eval_bytes` of them are evaluated. steps: batches per epoch.
    vocab_size: 256 for bytes, more for a BPE trained on the training blocks, 50304 for "fineweb",
    which has shards of its own: 100 M training tokens and 10.5 M held-out ones.
    Raises ValueError for sizes out of range, DataError for missing or damaged data.
    """
    if not 1 <= sequence_length < BLOCK:
        raise ValueError(f"sequence_length must be in [1, {BLOCK}), got {sequence_length}")
    if corpus == "fineweb":
        if vocab_size != GPT2:
            raise ValueError(f'vocab_size of corpus = "fineweb" is {GPT2}, got {vocab_size}')
        *tokens, size = fineweb()
        train, held_out = (_windows(part, sequence_length + 1) for part in tokens)
        digest = dict(FINEWEB)
    else:
        blocks, size, digest = _corpus(_names(corpus), vocab_size)
        train, held_out = split(blocks, sequence_length + 1)
    whole = int(size[pairs(held_out)[1]].sum())
    count = eval_bytes * len(held_out) // max(1, whole)
    if not 1 <= count <= len(held_out):
        least = -(-whole // max(1, len(held_out)))
        raise ValueError(f"eval_bytes must be in [{least}, {whole}] for the held-out text of "
                         f'corpus = "{corpus}", got {eval_bytes}')
    spaced = held_out[torch.arange(count) * len(held_out) // count]
    return Ladder(OnePass(train.to(device), batch_size, steps, seed), spaced.to(device),
                  int(size[pairs(spaced)[1]].sum()), digest, len(size))


def _corpus(names: Sequence[str], vocab_size: int) -> tuple[list[Tensor], Tensor, dict[str, str]]:
    """(blocks of tokens, bytes of each token, text -> SHA-256)."""
    if vocab_size != BYTES and not VOCAB_SIZES[0] <= vocab_size <= VOCAB_SIZES[1]:
        raise ValueError(f"vocab_size must be {BYTES} or in {list(VOCAB_SIZES)}, got {vocab_size}")
    texts, digests = zip(*map(load, names), strict=True)
    blocks, size = blocks_of(np.concatenate(texts)), torch.ones(BYTES, dtype=torch.int64)
    if vocab_size != BYTES:
        blocks, size = _in_pieces(blocks, digests, vocab_size)
    return blocks, size, dict(zip(names, digests, strict=True))


def blocks_of(content: np.ndarray) -> list[Tensor]:
    """Cut a text into blocks of BLOCK bytes and drop the rest. Raises ValueError for fewer than
    two blocks."""
    blocks = torch.from_numpy(content[: len(content) // BLOCK * BLOCK]).view(-1, BLOCK)
    if len(blocks) < 2:
        raise ValueError(f"a text needs two blocks of {BLOCK} bytes, got {len(content)} bytes")
    return list(blocks)


def split(blocks: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Return training and held-out windows, (windows, length) each; drop the rest of a block."""
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    for index, block in enumerate(blocks):
        parts[index % HELD_OUT == 0].append(_windows(block, length))
    return torch.cat(parts[0]), torch.cat(parts[1])


def _windows(tokens: Tensor, length: int) -> Tensor:
    return tokens[: len(tokens) // length * length].view(-1, length)


def _in_pieces(blocks: list[Tensor], digests: Sequence[str], vocab_size: int
               ) -> tuple[list[Tensor], Tensor]:
    """Return each block as BPE tokens, int16, and the bytes per token, (vocab_size,); cached. A
    character that the end of a block cuts is dropped."""
    def compute() -> bytes:
        print("tokenizing the ladder's corpus (only once, some minutes)", file=sys.stderr,
              flush=True)
        texts = [block.numpy().tobytes().decode(errors="ignore") for block in blocks]
        tokenizer = bpe.trained((line for index, text in enumerate(texts) if index % HELD_OUT
                                 for line in text.splitlines(keepends=True)), vocab_size)
        encoded = [torch.tensor(ids, dtype=torch.int16)
                   for ids in bpe.encode(tokenizer, texts, "the corpus", AT_ONCE)]
        content = io.BytesIO()
        torch.save({"blocks": encoded, "bytes": bpe.token_bytes(tokenizer)}, content)
        return content.getvalue()

    key = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    kept = torch.load(io.BytesIO(cached(f"ladder_{key}_{vocab_size}", compute)), weights_only=True)
    return kept["blocks"], kept["bytes"]


def pairs(windows: Tensor) -> tuple[Tensor, Tensor]:
    """(inputs, targets) of windows (n, length + 1): int64, (n, length) each."""
    windows = windows.long() & 0xFFFF  # uint16 stored as int16
    return windows[:, :-1], windows[:, 1:]


def _names(corpus: str) -> list[str]:
    if corpus not in get_args(Corpus):
        raise ValueError(f"corpus must be one of {get_args(Corpus)}, got {corpus!r}")
    return corpus.split("+")


def load(name: str) -> tuple[np.ndarray, str]:
    """Return the bytes of one text, uint8, and its SHA-256. Raises DataError if it is missing or
    damaged."""
    if name == "wikitext2":
        digest = WIKITEXT2["v1"]["train"]
        content: bytes | memoryview = wikitext2_texts("v1")["train"].encode()
    else:
        digest = SHA256[name]
        content = cached(f"ladder_{name}_{digest[:16]}", lambda: _decoded(name, digest))
    return np.frombuffer(content, np.uint8), digest


def _decoded(name: str, digest: str) -> bytes:
    path = _compressed(name)
    try:
        return verify(bz2.decompress(path.read_bytes()), digest, f"the text in {path}")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _compressed(name: str) -> Path:
    """The file of a text: supplied in any place, or downloaded to the folder of its source."""
    own = next(folder for folder, texts in SOURCES.items() if name in texts)
    files = [place / f"{name}.txt.bz2" for folder in (FOLDER, own) for place in places(folder)]
    return next((path for path in files if path.exists()), None) or download(
        f"the ladder's text {name}", own, [lambda: build(own)]) / f"{name}.txt.bz2"
