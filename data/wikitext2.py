"""Wikitext-2, Merity et al. 2016, arXiv 1609.07843, as byte-level BPE tokens packed into rows.

The files are `wikitext-2/{train,valid,test}.txt` (variant "v1") and the same in `wikitext-2-raw/`
("raw"), byte for byte those of the published archives. Tokenizer and rows are cached under a hash
of their inputs.
"""

import hashlib
import io
import json
import sys
from array import array
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from data import cached, download, locate, new_folder, read, verify
from data.batches import IGNORED, Batches
from data.bpe import EOT, PAD, SMALLEST, encode, lines, token_bytes, trained

FOLDERS = {"v1": "wikitext-2", "raw": "wikitext-2-raw"}
HUB = {"v1": "wikitext-2-v1", "raw": "wikitext-2-raw-v1"}  # configurations of Salesforce/wikitext
SPLITS = {"train": "train", "valid": "validation", "test": "test"}  # our file, the hub's split
SHA256 = {  # of wiki.*.tokens and wiki.*.raw in the published archives
    "v1": {"train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
           "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
           "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"},
    "raw": {"train": "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
            "valid": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
            "test": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"},
}
VOCAB_SIZES = (SMALLEST, 2**20)
LONGEST_ROW = 2**16
CACHE_FORMAT = 4  # part of every cached name: raise it when the code below changes its result
SECONDS = 20  # for tokenizing on two CPU cores

Variant = Literal["v1", "raw"]
Packing = Literal["contiguous", "sentence"]


@dataclass(frozen=True)
class Wikitext2:
    """Rows (inputs, targets), int64, (rows, sequence_length) each.

    Padding is `pad_id` in inputs and IGNORED in targets. eval and test are the validation and test
    splits; eval_bytes and test_bytes count the UTF-8 bytes of text in their targets. digest: split
    -> SHA-256 of its text.
    """

    train: Batches
    eval: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    vocab_size: int
    pad_id: int
    eval_bytes: int
    test_bytes: int
    digest: dict[str, str]


def wikitext2(
    batch_size: int = 8, variant: Variant = "v1", packing: Packing = "contiguous",
    sequence_length: int = 255, vocab_size: int = 40479, subset: float = 1.0,
    eval_subset: float = 1.0, epochs_per_pass: int = 1, drop_last: bool = False,
    train_on_padding: bool = False, *, seed: int, device: torch.device,
) -> Wikitext2:
    """Wikitext-2 in rows of `sequence_length` inputs and the targets, shifted by one token.

    variant: "v1" has <unk> for rare words, "raw" (used by the published runs) keeps them. packing:
    "contiguous" is document order without gaps; "sentence", the published one, packs sentences
    sorted by length. vocab_size: of a BPE trained on the training text. subset, eval_subset: share
    of the training and of the validation rows, evenly spaced; the test split is always whole.
    Padding is left out of the training loss unless `train_on_padding` (published). drop_last,
    epochs_per_pass: see Batches.
    Raises ValueError for sizes out of range, DataError for missing or damaged data.
    """
    _check(variant, packing, sequence_length, vocab_size, subset, eval_subset)
    packed = _packed(texts(variant), SHA256[variant], packing, sequence_length, vocab_size)
    if not all(len(packed[split]) for split in SPLITS):
        raise ValueError(f"sequence_length {sequence_length} is longer than the text of a split")
    shares = {"train": subset, "valid": eval_subset, "test": 1.0}
    rows = {split: _thin(packed[split], share).long().to(device) for split, share in shares.items()}
    pad, length = packed["pad_id"], packed["token_bytes"].to(device)
    padded = {split: row.masked_fill(row == IGNORED, pad) for split, row in rows.items()}
    pairs = {split: (padded[split][:, :-1], row[:, 1:]) for split, row in rows.items()}
    if train_on_padding:
        pairs["train"] = padded["train"][:, :-1], padded["train"][:, 1:]
    train = Batches(pairs["train"], batch_size, seed, drop_last, epochs_per_pass=epochs_per_pass)
    held_out = pairs["valid"], pairs["test"]
    eval_bytes, test_bytes = (
        int(length[targets[targets != IGNORED]].sum()) for _, targets in held_out)
    return Wikitext2(train, *held_out, len(length), pad, eval_bytes, test_bytes,
                     dict(SHA256[variant]))


def _check(variant: str, packing: str, sequence_length: int, vocab_size: int, subset: float,
           eval_subset: float) -> None:
    """Raise ValueError for an invalid value, before any memory is asked for."""
    if variant not in get_args(Variant) or packing not in get_args(Packing):
        raise ValueError(f"variant must be one of {list(get_args(Variant))} and packing one of "
                         f"{list(get_args(Packing))}, got {variant!r}, {packing!r}")
    for name, size, (low, high) in (("vocab_size", vocab_size, VOCAB_SIZES),
                                    ("sequence_length", sequence_length, (1, LONGEST_ROW))):
        if not low <= size <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], got {size}")
    for name, share in {"subset": subset, "eval_subset": eval_subset}.items():
        if not 0 < share <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {share}")


def pack(pieces: list[list[int]], length: int, pad: int = IGNORED) -> Tensor:
    """Pack token lists into rows (rows, length), int32, as published.

    Lists longer than a row or of a single token are dropped. The others are sorted by length,
    longest first, and placed one after another; a list that does not fit begins a new row.
    """
    kept = sorted((piece for piece in pieces if 1 < len(piece) <= length), key=len, reverse=True)
    rows: list[list[int]] = []
    for piece in kept:
        if rows and len(rows[-1]) + len(piece) <= length:
            rows[-1] = rows[-1] + piece
        else:
            rows.append(piece)
    return _padded(rows, length, pad)


def chunk(tokens: Tensor, length: int, pad: int = IGNORED) -> Tensor:
    """Cut tokens (n,) into rows (rows, length). Each begins with the last token of the row before,
    so that every token but the first is a target exactly once; the last row is padded."""
    stride = length - 1
    rows = max(0, -(-(len(tokens) - 1) // stride))
    padded = F.pad(tokens, (0, 1 + rows * stride - len(tokens)), value=pad)
    return torch.cat([padded[:-1].view(rows, stride), padded[stride::stride, None]], dim=1)


def _thin(rows: Tensor, share: float) -> Tensor:
    count = max(1, round(share * len(rows)))
    return rows[torch.arange(count) * len(rows) // count]


def _padded(rows: list[list[int]], length: int, pad: int) -> Tensor:
    filled = [row + [pad] * (length - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.int32).reshape(len(rows), length)


def sentences(text: str) -> list[str]:
    """Split each line at every ".", also inside numbers, strip, and append "." (as published)."""
    return [f"{piece.strip()}." for line in text.split("\n") for piece in line.split(".")
            if piece.strip()]


def _packed(texts: dict[str, str], sums: dict[str, str], packing: str, sequence_length: int,
            vocab_size: int) -> dict:
    """Return the rows of every split, "pad_id" and "token_bytes" (vocab_size,); cached."""
    def compute() -> bytes:
        print(f"tokenizing Wikitext-2 (only once, about {SECONDS} s)", file=sys.stderr, flush=True)
        tokenizer = _tokenizer(texts["train"], sums["train"], vocab_size)
        eot = tokenizer.token_to_id(EOT)
        packed = {"pad_id": tokenizer.token_to_id(PAD), "token_bytes": token_bytes(tokenizer)}
        for split, text in texts.items():
            if packing == "contiguous":
                ids = array("i", chain.from_iterable(encode(tokenizer, lines(text), split)))
                packed[split] = chunk(torch.asarray(ids, dtype=torch.int32), sequence_length + 1)
            else:
                pieces = [ids + [eot] for ids in encode(tokenizer, sentences(text), split)]
                packed[split] = pack(pieces, sequence_length + 1)
        content = io.BytesIO()
        torch.save(packed, content)
        return content.getvalue()

    name = f"wikitext2_{_key(packing, sequence_length, vocab_size, sums)}"
    return torch.load(io.BytesIO(cached(name, compute)), weights_only=True)


def _tokenizer(text: str, checksum: str, vocab_size: int):
    """Train a byte-level BPE on `text`; cached."""
    from tokenizers import Tokenizer

    name = f"tokenizer_{_key(vocab_size, checksum)}"
    content = cached(name, lambda: trained(
        text.splitlines(keepends=True), vocab_size).to_str().encode())
    tokenizer = Tokenizer.from_str(str(content, "utf-8"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _key(*parts) -> str:
    return hashlib.sha256(json.dumps([CACHE_FORMAT, *parts]).encode()).hexdigest()[:16]


def texts(variant: str) -> dict[str, str]:
    """Return the text of each split, located or downloaded."""
    folder = locate(FOLDERS[variant]) or download(
        f'Wikitext-2, variant "{variant}"', FOLDERS[variant], [lambda: _from_hub(variant)])
    return {split: read(folder / f"{split}.txt", SHA256[variant][split]).decode()
            for split in SPLITS}


def _from_hub(variant: str) -> str:
    """Download Salesforce/wikitext, one row per line; its blank lines lack the published " \\n"."""
    from datasets import load_dataset

    loaded = load_dataset("Salesforce/wikitext", HUB[variant])
    with new_folder(FOLDERS[variant]) as folder:
        for split, hub_split in SPLITS.items():
            text = "".join(row or " \n" for row in loaded[hub_split]["text"]).encode()
            verify(text, SHA256[variant][split], f"the hub's {hub_split} split")
            (folder / f"{split}.txt").write_bytes(text)
    return FOLDERS[variant]
