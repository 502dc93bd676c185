"""Tiny data sets in the real layouts, and runs of the real training scripts on them."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import data.cifar10
import data.wikitext2

torch.set_num_threads(1)  # the shapes are tiny: a second thread only waits

REAL_DATA = os.environ.get("ARS_DATA")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "3.14", "<unk>",
         "naïve", "of", "in", "1984")

# What makes any config of a task small enough to take a second; two steps an epoch.
TINY = {
    "grokking": ["data.p=11", "data.fraction=0.5", "data.batch_size=30", "model.d_model=16",
                 "model.d_head=4", "model.d_mlp=32"],
    "cifar": ["data.batch_size=20", "data.subset=0.4", "data.epochs_per_pass=1", "model.width=2"],
    "wikitext2": ["data.batch_size=4", "data.vocab_size=300", "data.sequence_length=15",
                  "data.subset=1.0", "model.hidden_size=16", "model.num_hidden_layers=1",
                  "model.num_attention_heads=2", "model.num_key_value_heads=2",
                  "model.head_dim=8", "model.intermediate_size=32",
                  "model.max_position_embeddings=32"],
}


def pytest_addoption(parser):
    parser.addoption("--write-golden", action="store_true",
                     help="write tests/golden/ where a RECIPE was raised or a file is new")


def write_text_splits(folder: Path, seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    sums = {}
    for split, lines in (("train", 20), ("valid", 3), ("test", 3)):
        text = "\n".join(" ".join(rng.choice(WORDS, 12)) + " . " for _ in range(lines)) + "\n"
        (folder / f"{split}.txt").write_bytes(text.encode())
        sums[split] = hashlib.sha256(text.encode()).hexdigest()
    return sums


def write_cifar(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The MD5 of each file, and the SHA-256 of its labels and images."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    md5, sha256 = {}, {}
    for name in data.cifar10.MD5:
        batch = {b"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8),
                 b"labels": rng.integers(0, 10, 20).tolist()}
        content = pickle.dumps(batch)
        (folder / name).write_bytes(content)
        md5[name] = hashlib.md5(content).hexdigest()
        labels = np.array(batch[b"labels"], dtype=np.uint8)[:, None]
        records = np.concatenate([labels, batch[b"data"]], axis=1)
        sha256[name] = hashlib.sha256(records.tobytes()).hexdigest()
    return md5, sha256


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A folder with all data sets, tiny, and their checksums: module -> name -> value."""
    root = tmp_path_factory.mktemp("data")
    texts = {"v1": write_text_splits(root / "wikitext-2", 0),
             "raw": write_text_splits(root / "wikitext-2-raw", 1)}
    md5, sha256 = write_cifar(root / "cifar-10-batches-py")
    return root, {"data.cifar10": {"MD5": md5, "SHA256": sha256},
                  "data.wikitext2": {"SHA256": texts}}


@pytest.fixture
def tiny_data(tiny_root, tmp_path_factory, monkeypatch):
    """$ARS_DATA with all data sets, tiny, and an empty cache; returns the folder."""
    root, sums = tiny_root
    monkeypatch.setenv("ARS_DATA", str(root))
    monkeypatch.setattr("data.CACHE", root / "cache")
    for module, values in sums.items():
        for name, value in values.items():
            monkeypatch.setattr(f"{module}.{name}", value)
    return root
