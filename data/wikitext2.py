"""Wikitext-2, Merity et al. 2016, arXiv 1609.07843, as byte-level BPE tokens in rows.

Tokenizer and packed rows are cached under the hash of what they were made from.
"""

import hashlib
import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from data import CACHE, DataError, locate, move_into_cache
from data.batches import IGNORED, Batches

FOLDERS = {"v1": "wikitext-2", "raw": "wikitext-2-raw"}
SPLITS = {"train": "train", "valid": "validation", "test": "test"}  # our file, the library's split
EOT, PAD = "<|endoftext|>", "<pad>"
SMALLEST_VOCAB = 256 + 2  # every byte, and the two special tokens
RECIPE = "bpe-3"  # part of every hash: change it when the code below changes its result

Variant = Literal["v1", "raw"]
Packing = Literal["contiguous", "sentence"]


@dataclass(frozen=True)
class Wikitext2:
    """Rows (inputs, targets), int64, (rows, sequence_length) each; padding is `pad_id`.

    eval and test are the validation and test splits; eval_bytes and test_bytes count the
    UTF-8 bytes of text that their targets stand for.
    """

    train: Batches
    eval: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    vocab_size: int
    pad_id: int
    eval_bytes: int
    test_bytes: int


def wikitext2(
    batch_size: int = 8, variant: Variant = "v1", packing: Packing = "contiguous",
    sequence_length: int = 255, vocab_size: int = 40479, subset: float = 1.0,
    eval_subset: float = 1.0, epochs_per_pass: int = 1, drop_last: bool = False,
    train_on_padding: bool = False, *, seed: int, device: torch.device,
) -> Wikitext2:
    """Wikitext-2 in rows of `sequence_length` inputs and as many targets, each one token later.

    variant: "v1" has rare words as <unk>, "raw" (the published runs') has not. packing:
    "contiguous" is document order without a gap; "sentence" is the published one, see `pack`.
    subset, eval_subset: share of the training and of the validation rows, evenly spaced; the test
    split is always whole. epochs_per_pass: see Batches. Padding is left out of the training loss
    unless `train_on_padding` (published).
    Raises ValueError for sizes out of range, DataError for missing data.
    """
    if variant not in get_args(Variant) or packing not in get_args(Packing):
        raise ValueError(f"unknown variant or packing, got {variant!r}, {packing!r}")
    if vocab_size < SMALLEST_VOCAB:
        raise ValueError(f"vocab_size must be >= {SMALLEST_VOCAB}, got {vocab_size}")
    if sequence_length < 1:
        raise ValueError(f"sequence_length must be >= 1, got {sequence_length}")
    for name, share in {"subset": subset, "eval_subset": eval_subset}.items():
        if not 0 < share <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {share}")
    texts = _read(variant)
    packed = _packed(texts, packing, sequence_length, vocab_size)
    rows = {split: packed[split].long().to(device) for split in SPLITS}
    if not all(map(len, rows.values())):
        raise ValueError(f"sequence_length {sequence_length} leaves a split without rows")
    rows["train"], rows["valid"] = _thin(rows["train"], subset), _thin(rows["valid"], eval_subset)
    pairs = {split: (row[:, :-1], row[:, 1:]) for split, row in rows.items()}
    inputs, targets = pairs["train"]
    if not train_on_padding:
        targets = targets.masked_fill(targets == packed["pad_id"], IGNORED)
    train = Batches((inputs, targets), batch_size, seed, drop_last,
                    epochs_per_pass=epochs_per_pass)
    length = packed["token_bytes"].to(device)
    return Wikitext2(train, pairs["valid"], pairs["test"], len(length), packed["pad_id"],
                     *(int(length[pairs[split][1]].sum()) for split in ("valid", "test")))


def pack(pieces: list[list[int]], length: int, pad: int) -> Tensor:
    """The published packing of token lists into rows (rows, length), int32.

    Lists longer than a row or of a single token are dropped, the rest sorted by length, longest
    first, and laid one after another; a list that no longer fits begins a new row.
    """
    kept = sorted((piece for piece in pieces if 1 < len(piece) <= length), key=len, reverse=True)
    rows: list[list[int]] = []
    for piece in kept:
        if rows and len(rows[-1]) + len(piece) <= length:
            rows[-1] = rows[-1] + piece
        else:
            rows.append(piece)
    return _padded(rows, length, pad)


def chunk(tokens: list[int], length: int, pad: int) -> Tensor:
    """Tokens in order as rows (rows, length), int32, each starting with the last token of the one
    before, so that every token but the first is a target once; the last row is padded."""
    stride = length - 1
    rows = [tokens[start:start + length] for start in range(0, len(tokens) - 1, stride)]
    return _padded(rows, length, pad)


def _thin(rows: Tensor, share: float) -> Tensor:
    count = max(1, round(share * len(rows)))
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]


def _padded(rows: list[list[int]], length: int, pad: int) -> Tensor:
    filled = [row + [pad] * (length - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.int32).reshape(len(rows), length)


def sentences(text: str) -> list[str]:
    """Each line split at every ".", also inside numbers, stripped, the "." put back (published)."""
    return [f"{piece.strip()}." for line in text.split("\n") for piece in line.split(".")
            if piece.strip()]


def _packed(texts: dict[str, str], packing: str, sequence_length: int, vocab_size: int) -> dict:
    """Rows of every split and what the model must know, from the cache or made now."""
    recipe = [RECIPE, packing, sequence_length, vocab_size, *texts.values()]
    path = CACHE / f"wikitext2_{_digest(recipe)}.pt"
    if path.exists():
        try:
            return torch.load(path, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise DataError(f"{path} is damaged: delete it, it will be made anew") from error
    tokenizer = _tokenizer(texts["train"], vocab_size)
    eot, pad = tokenizer.token_to_id(EOT), tokenizer.token_to_id(PAD)
    packed = {"pad_id": pad, "token_bytes": _token_bytes(tokenizer)}
    for split, text in texts.items():
        if packing == "contiguous":
            tokens = tokenizer.encode(text).ids
            packed[split] = chunk(tokens, sequence_length + 1, pad)
        else:
            pieces = [encoding.ids + [eot] for encoding in tokenizer.encode_batch(sentences(text))]
            packed[split] = pack(pieces, sequence_length + 1, pad)
    content = io.BytesIO()
    torch.save(packed, content)
    _write(path, content.getbuffer())
    return packed


def _token_bytes(tokenizer) -> Tensor:
    """UTF-8 bytes that each token stands for, (vocab_size,): in byte-level BPE each character is
    one byte; special tokens stand for none."""
    lengths = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if token in (EOT, PAD) else len(token)
    return lengths


def _tokenizer(text: str, vocab_size: int):
    """A byte-level BPE trained on `text`, once."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path = CACHE / f"tokenizer_{_digest([RECIPE, vocab_size, text])}.json"
    if path.exists():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise DataError(f"{path} is damaged: delete it, it will be made anew") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOT, PAD], show_progress=False,
        # The published recipe left it out: a byte unseen in training would vanish from the text.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer=trainer)
    _write(path, tokenizer.to_str().encode())
    return tokenizer


def _read(variant: str) -> dict[str, str]:
    """Text of each split, found or fetched."""
    folder = locate(FOLDERS[variant])
    if folder is None:
        return _fetch(variant)
    try:
        return {split: (folder / f"{split}.txt").read_text(encoding="utf-8") for split in SPLITS}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Wikitext-2 in {folder} is incomplete or damaged: {error}") from error


def _fetch(variant: str) -> dict[str, str]:
    name = {"v1": "wikitext-2-v1", "raw": "wikitext-2-raw-v1"}[variant]
    try:
        from datasets import load_dataset

        loaded = load_dataset("Salesforce/wikitext", name)
        texts = {split: "".join(loaded[theirs]["text"]) for split, theirs in SPLITS.items()}
    except Exception as error:  # a network has many ways to fail
        raise DataError(
            f'Wikitext-2, variant "{variant}", is not there and cannot be fetched '
            f"({type(error).__name__}): put train.txt, valid.txt and test.txt into "
            f"data/cache/{FOLDERS[variant]}/ or $ARS_DATA/{FOLDERS[variant]}/") from error
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        made = Path(temporary) / FOLDERS[variant]
        made.mkdir()
        for split, text in texts.items():
            (made / f"{split}.txt").write_text(text, encoding="utf-8")
        move_into_cache(made, FOLDERS[variant])
    return texts


def _digest(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _write(path: Path, content: bytes | memoryview) -> None:
    """Write to a temporary file, then rename: several runs may do so at once. Bytes, since the
    libraries' own writers hide the OSError of a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
