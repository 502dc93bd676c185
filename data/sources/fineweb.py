"""FineWeb, arXiv 2406.17557, as GPT-2 tokens: one training shard and the validation shard.

The files are those of modded-nanogpt, kjj0/fineweb10B-gpt2 on the Hugging Face hub, 100 million
tokens each; GPT-2's vocabulary gives the number of bytes per token.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import DataError, download, locate, new_folder, read
from data.bpe import EOT

FOLDER = "fineweb10B"
TRAIN, VALIDATION, VOCABULARY = "fineweb_train_000001.bin", "fineweb_val_000000.bin", "vocab.json"
SHA256 = {
    TRAIN: "771fa4a99b9fe0946ffb6e848b4ba5c6a9b0fe87860ebf03bc2c1c7e45f8178e",
    VALIDATION: "5b95c8e0966f0861685b307b23dc5ae42b228ef74b28cb499784ae021f201640",
    VOCABULARY: "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
HUB = {  # name -> repository, its type and commit
    **dict.fromkeys((TRAIN, VALIDATION), (
        "kjj0/fineweb10B-gpt2", "dataset", "889765ea1f903759787add96995d81171b632d0c")),
    VOCABULARY: ("openai-community/gpt2", "model", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
}
MAGIC, VERSION, HEADER = 20240520, 1, 256  # of 256 int32, the third is the number of tokens
VOCAB_SIZE = 50304  # 50,257 tokens and padding to a multiple of 128
EVALUATED = 10 * 2**20  # first tokens of the validation shard, as in track 3


def fineweb() -> tuple[Tensor, Tensor, Tensor]:
    """Return (training tokens, validation tokens, bytes per token (50304,)); tokens are uint16
    stored as int16. Raises DataError if the data are missing or damaged."""
    folder = locate(FOLDER) or download("FineWeb as GPT-2 tokens, 400 MB", FOLDER, [_from_hub])
    train, evaluation = (_tokens(folder, name) for name in (TRAIN, VALIDATION))
    size = torch.zeros(VOCAB_SIZE, dtype=torch.int64)
    for token, index in json.loads(read(folder / VOCABULARY, SHA256[VOCABULARY])).items():
        size[index] = 0 if token == EOT else len(token)  # one character per byte
    return train, evaluation[:EVALUATED], size


def _tokens(folder: Path, name: str) -> Tensor:
    content = read(folder / name, SHA256[name])
    header = np.frombuffer(content, np.int32, min(HEADER, len(content) // 4))
    tokens = np.frombuffer(content, np.int16, offset=header.nbytes)
    if header[:2].tolist() != [MAGIC, VERSION] or len(tokens) != header[2]:
        raise DataError(f"{folder / name} is not a token file of version {VERSION}")
    return torch.from_numpy(tokens.copy())


def _from_hub() -> str:
    from huggingface_hub import hf_hub_download

    with new_folder(FOLDER) as folder:
        for name, (repository, kind, commit) in HUB.items():
            hf_hub_download(repository, name, repo_type=kind, revision=commit, local_dir=folder)
    return FOLDER
