"""Tiny data sets in the real layouts, and runs of the real training scripts on them."""

import bz2
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import data.cifar10
import data.ladder
import data.wikitext2
from exp.harness.task import task_named, tasks
from exp.harness.toml import read_toml, to_toml

torch.set_num_threads(1)  # the shapes are tiny: a second thread only waits
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for processes that tests start

REAL_DATA = os.environ.get("ARS_DATA")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "3.14", "<unk>",
         "naïve", "of", "in", "1984")

# What makes any config of a task small enough to take a second; two steps per epoch.
TINY = {name: task_named(name).scale("tiny") for name in tasks()}


def aga_config(name: str, folder: Path) -> Path:
    """The task's baseline with ARS2-Neo in its adaptive mode, written to a file beside `folder`."""
    settings = read_toml(task_named(name).config)
    settings["optimizer"] = {"name": "ars2_neo", "lr": 1e-3, "betas": [0.9, 0.95], "k": 10,
                             "weight_decay": 0.1, "adaptive_sync": True}
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{name}_aga.toml"
    path.write_text(to_toml(settings), encoding="utf-8")
    return path


# The files that take longest, in this order, go first: the last ones fill both processes.
SLOW = ("optimizers", "distributed", "runs", "contributing", "tune", "reproduce", "bench",
        "torch_citizens", "diagnostics", "output", "launch", "theory_small", "damage", "chaos",
        "theory_sweeps", "site", "optimizer_package")


def pytest_configure(config):
    """pytest-xdist's own order would be by the number of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Slow files first, the others as they were."""
    places = {f"test_{name}": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path.stem, len(SLOW)))


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


def write_ladder(folder: Path) -> dict[str, str]:
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True)
    sums = {}
    for name, words in (("eltec", 90_000), ("novels", 30_000), ("docs", 1000)):
        text = " ".join(rng.choice(WORDS, words)).encode()
        (folder / f"{name}.txt.bz2").write_bytes(bz2.compress(text))
        sums[name] = hashlib.sha256(text).hexdigest()
    return sums


def write_data(root: Path) -> dict[str, dict]:
    """Write all data sets, tiny; their checksums: module -> name -> value."""
    texts = {"v1": write_text_splits(root / "wikitext-2", 0),
             "raw": write_text_splits(root / "wikitext-2-raw", 1)}
    md5, sha256 = write_cifar(root / "cifar-10-batches-py")
    return {"data.cifar10": {"MD5": md5, "SHA256": sha256}, "data.wikitext2": {"SHA256": texts},
            "data.ladder": {"SHA256": write_ladder(root / "ladder")}}


def use_data(root: Path, sums: dict[str, dict], patch: pytest.MonkeyPatch) -> None:
    """Make $ARS_DATA a folder of tiny data sets, with an empty cache."""
    patch.setenv("ARS_DATA", str(root))
    patch.setattr("data.CACHE", root / "cache")
    for module, values in sums.items():
        for name, value in values.items():
            patch.setattr(f"{module}.{name}", value)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A folder with all data sets, tiny, and their checksums: module -> name -> value."""
    root = tmp_path_factory.mktemp("data")
    return root, write_data(root)


@pytest.fixture
def tiny_data(tiny_root, monkeypatch):
    """$ARS_DATA with all data sets, tiny, and an empty cache; returns the folder."""
    use_data(*tiny_root, monkeypatch)
    return tiny_root[0]
