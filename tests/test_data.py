"""Data: hand-made packings, the augmentation's distribution, purity of the order, clear errors."""

import bz2
import hashlib
import importlib
import io
import json
import math
import os
import pickle
import pkgutil
import random
import resource
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from conftest import REAL_DATA

import data
import data.cifar10
import data.ladder
import data.wikitext2
from data import DataError, bpe
from data.batches import Batches
from data.bpe import encode, lines
from data.cifar10 import augment, cifar10, normalize
from data.modular import modular
from data.sources import fineweb
from data.sources import ladder as sources
from data.wikitext2 import chunk, pack, sentences, wikitext2
from exp.harness.build import build
from exp.harness.config import load_settings
from exp.harness.errors import ConfigError
from exp.harness.task import task_named

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
NAMES = sorted(module.name for module in pkgutil.iter_modules(data.__path__)
               if module.name not in ("batches", "bpe") and not module.ispkg)
CPU = {"seed": 3, "device": torch.device("cpu")}


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """No data anywhere: an empty cache, which is returned, and an empty $ARS_DATA."""
    monkeypatch.setenv("ARS_DATA", str(tmp_path))
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def batches(seed=0, **settings):
    rows = torch.arange(20)
    return Batches((rows, rows * 10), batch_size=6, seed=seed, **settings)


def test_an_epoch_visits_every_row_once_and_pairs_stay_together():
    found = list(batches().epoch(0))
    assert [len(a) for a, _ in found] == [6, 6, 6, 2]
    assert sorted(torch.cat([a for a, _ in found]).tolist()) == list(range(20))
    assert all(torch.equal(b, a * 10) for a, b in found)


def test_drop_last_drops_the_short_batch():
    assert [len(a) for a, _ in batches(drop_last=True).epoch(0)] == [6, 6, 6]
    assert (len(batches(drop_last=True)), batches(drop_last=True).examples) == (3, 18)


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    def order(seed, epoch, start=0):
        return [a.tolist() for a, _ in batches(seed).epoch(epoch, start)]

    assert order(1, 3) == order(1, 3)
    assert order(1, 3, start=2) == order(1, 3)[2:]
    assert order(1, 3) != order(1, 4)
    assert order(1, 3) != order(2, 3)


def test_parts_of_a_pass_are_epochs_without_a_row_in_common():
    def rows(epoch):
        return torch.cat([a for a, _ in batches(epochs_per_pass=3).epoch(epoch)]).tolist()

    data = batches(epochs_per_pass=3)  # 20 rows: three times 6, two left over
    assert (len(data), data.examples) == (1, 6)
    whole = torch.cat([a for a, _ in batches().epoch(1)]).tolist()
    assert [rows(3), rows(4), rows(5)] == [whole[:6], whole[6:12], whole[12:18]]  # second pass
    assert len({*rows(0), *rows(1), *rows(2)}) == 18
    assert {*rows(0)} != {*rows(3)}
    assert len(batches(epochs_per_pass=2)) == 2  # ten rows: six and four
    assert len(batches(epochs_per_pass=2, drop_last=True)) == 1


def test_augmentation_is_a_pure_function_of_the_batch_and_leaves_the_global_rng_alone():
    def noise(rows, generator):
        return torch.rand(len(rows), generator=generator)

    state = torch.get_rng_state()
    whole = [a for a, _ in batches(augment=noise).epoch(2)]
    rest = [a for a, _ in batches(augment=noise).epoch(2, start=1)]
    assert all(map(torch.equal, whole[1:], rest))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(whole[0], whole[1])
    other = [next(batches(seed, augment=noise).epoch(epoch))[0] for seed, epoch in ((0, 3), (1, 2))]
    assert not any(torch.equal(whole[0], first) for first in other)


def test_batches_refuse_what_leaves_no_batch():
    with pytest.raises(ValueError, match="batch_size"):
        Batches((torch.arange(3),), 0, 0)
    with pytest.raises(ValueError, match="epochs_per_pass"):
        Batches((torch.arange(3),), 1, 0, epochs_per_pass=0)
    with pytest.raises(ValueError, match="batch_size .* got 1000000000000000000000"):
        Batches((torch.arange(3),), 10**21, 0)
    with pytest.raises(ValueError, match="no batch"):
        Batches((torch.arange(3),), 1, 0, epochs_per_pass=4)
    with pytest.raises(ValueError, match="no batch"):
        Batches((torch.arange(3),), 4, 0, drop_last=True)


# --- modular arithmetic


def test_every_pair_once_with_its_sum():
    d = modular(50, p=11, fraction=0.3, **CPU)
    train = [torch.cat(parts) for parts in zip(*d.train.epoch(0), strict=True)]
    assert len(train[0]) == int(0.3 * 121)
    tokens = torch.cat([train[0], d.eval[0]])
    labels = torch.cat([train[1], d.eval[1]])
    assert len({tuple(row) for row in tokens.tolist()}) == 121
    assert torch.equal(labels, (tokens[:, 0] + tokens[:, 1]) % 11)
    assert set(tokens[:, 2].tolist()) == {11}
    assert d.vocab_size == 12


def test_the_published_split_sizes():
    d = modular(**CPU)
    assert (d.train.examples, len(d.train), len(d.eval[1])) == (3830, 8, 8939)
    other = modular(seed=4, device=CPU["device"])
    assert not torch.equal(d.eval[0], other.eval[0])


def test_the_digest_of_modular_arithmetic_tells_the_examples_not_their_split():
    digests = [modular(50, seed=seed, device=CPU["device"], **settings).digest["examples"]
               for seed, settings in ((3, {"p": 7}), (4, {"p": 7, "fraction": 0.5}), (3, {"p": 11}),
                                      (3, {"p": 7, "operation": "gcd"}))]
    assert digests[0] == digests[1]
    assert len({*digests}) == 3


@pytest.mark.parametrize("settings", [
    {"fraction": 0.0}, {"fraction": 1.0}, {"fraction": float("inf")}, {"fraction": float("nan")},
    {"p": 1}])
def test_modular_arithmetic_refuses_empty_sides(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        modular(**settings, **CPU)


def labelled(**settings):
    """operands -> label, of every example."""
    d = modular(50, **settings, **CPU)
    train = [torch.cat(parts) for parts in zip(*d.train.epoch(0), strict=True)]
    tokens, labels = (torch.cat(parts) for parts in zip(train, d.eval, strict=True))
    pairs = {tuple(row[:-1]): label for row, label in
             zip(tokens.tolist(), labels.tolist(), strict=True)}
    assert len(pairs) == len(labels) and set(tokens[:, -1].tolist()) == {settings["p"]}
    return pairs


@pytest.mark.parametrize(("operation", "by_hand"), [
    ("addition", {(3, 5): 1, (0, 0): 0, (6, 6): 5}),
    ("subtraction", {(3, 5): 5, (5, 3): 2, (0, 6): 1}),
    ("multiplication", {(3, 5): 1, (6, 6): 1, (0, 4): 0}),
    ("division", {(3, 5): 2, (1, 6): 6, (0, 4): 0, (4, 2): 2}),  # 2 * 5 = 10 = 3 mod 7
    ("exponentiation", {(3, 5): 5, (2, 3): 1, (0, 0): 1, (0, 2): 0, (6, 5): 6}),  # 243 = 5 mod 7
    ("gcd", {(4, 6): 2, (3, 5): 1, (0, 5): 5, (0, 0): 0}),
])
def test_labels_by_hand_mod_7(operation, by_hand):
    pairs = labelled(p=7, operation=operation)
    assert {pair: pairs[pair] for pair in by_hand} == by_hand
    assert len(pairs) == (42 if operation == "division" else 49)
    assert max(pairs.values()) <= 6


def test_division_undoes_multiplication_and_powers_are_pythons():
    assert all(label * b % 97 == a for (a, b), label in
               labelled(p=97, operation="division").items())
    assert all(label == pow(a, b, 97) for (a, b), label in
               labelled(p=97, operation="exponentiation").items())


def test_the_parity_of_bits_is_addition_of_ten_terms_mod_2():
    strings = labelled(p=2, terms=10)
    assert len(strings) == 1024
    assert strings[1, 0, 0, 1, 1, 0, 0, 0, 0, 0] == 1
    assert all(label == sum(bits) % 2 for bits, label in strings.items())


@pytest.mark.parametrize(("settings", "message"), [
    ({"operation": "division", "p": 9}, "prime"), ({"terms": 1}, "terms"),
    ({"terms": 9}, "113"), ({"terms": 10**9}, "1000000000"), ({"terms": 10**400}, "10000"),
    ({"p": 10**400}, "10000"), ({"operation": "xor"}, "xor")])
def test_modular_arithmetic_refuses_what_it_cannot_label(settings, message):
    with pytest.raises(ValueError, match=message):
        modular(**settings, **CPU)


# --- the ladder


def numbered(blocks):
    """A text whose bytes say which block they are in, and what is left of another one."""
    text = np.repeat(np.arange(blocks, dtype=np.uint8), data.ladder.BLOCK)
    return np.concatenate([text, np.full(data.ladder.BLOCK - 1, 255, np.uint8)])


def test_every_64th_block_is_held_out_and_windows_do_not_overlap():
    train, held_out = data.ladder.split(data.ladder.blocks_of(numbered(130)), 100)
    assert train.shape == (127 * 655, 100) and held_out.shape == (3 * 655, 100)
    assert held_out.unique().tolist() == [0, 64, 128]
    assert train.unique().tolist() == sorted({*range(130)} - {0, 64, 128})
    text = np.arange(2 * data.ladder.BLOCK) % 251
    train, _ = data.ladder.split(data.ladder.blocks_of(text.astype(np.uint8)), 100)
    assert torch.equal(train.flatten(), torch.from_numpy(text)[65536 : 65536 + 65500].byte())


def test_no_window_is_used_twice_and_runs_of_every_length_begin_alike():
    windows = torch.arange(200, dtype=torch.uint8)[:, None].expand(-1, 6).contiguous()
    train = data.ladder.OnePass(windows, 4, 7, seed=5)
    assert (train.most_epochs, len(train), train.examples) == (7, 7, 28)
    batches = [[inputs[:, 0] for inputs, _ in train.epoch(epoch)] for epoch in range(7)]
    assert {len(epoch) for epoch in batches} == {7}
    seen = torch.cat(sum(batches, []))
    assert len(seen) == 196 == len(seen.unique())
    longer = data.ladder.OnePass(windows, 4, 14, seed=5)
    assert torch.equal(torch.cat([inputs[:, 0] for inputs, _ in longer.epoch(0)]), seen[:56])
    resumed = [inputs[:, 0] for inputs, _ in train.epoch(2, start=3)]
    assert torch.equal(torch.cat(resumed), torch.cat(batches[2][3:]))
    inputs, targets = next(data.ladder.OnePass(
        torch.arange(12, dtype=torch.uint8).view(2, 6), 2, 1, seed=0).epoch(0))
    assert torch.equal(inputs + 1, targets) and inputs.dtype == torch.int64
    with pytest.raises(ValueError, match="one pass has 7 epochs"):
        next(train.epoch(7))
    with pytest.raises(ValueError, match="more than one pass"):
        data.ladder.OnePass(windows, 4, 51, seed=5)


def test_windows_evaluated_are_evenly_spaced_and_those_of_a_corpus(tiny_data):
    d = data.ladder.ladder(4, 2, eval_bytes=50 * 128, **CPU)
    assert d.eval.shape == (50, 129) and d.vocab_size == 256
    text = bz2.decompress((tiny_data / "ladder" / "eltec.txt.bz2").read_bytes())
    starts = [index * 508 // 50 * 129 for index in range(50)]
    assert [bytes(row.tolist()) for row in d.eval] == [text[i : i + 129] for i in starts]
    assert d.digest == {name: data.ladder.SHA256[name] for name in ("eltec", "novels")}
    assert d.eval_bytes == 50 * 128
    with_docs = data.ladder.ladder(4, 2, "eltec+docs", eval_bytes=640, **CPU)
    assert list(with_docs.digest) == ["eltec", "docs"]


def test_the_ladder_in_pieces_of_a_vocabulary_made_without_held_out_blocks(tiny_data):
    d = data.ladder.ladder(4, 2, "eltec+docs", eval_bytes=4000, vocab_size=300, **CPU)
    assert d.vocab_size == 300 and d.eval.dtype == torch.int16
    text = b"".join(bz2.decompress((tiny_data / "ladder" / f"{name}.txt.bz2").read_bytes())
                    for name in ("eltec", "docs"))
    blocks = [text[start : start + 2**16].decode(errors="ignore")  # two bytes of ï may be parted
              for start in range(0, len(text) - 2**16 + 1, 2**16)]
    tokenizer = bpe.trained([line for block in blocks[1:] for line in block.splitlines(True)], 300)
    ids = [tokenizer.encode(block).ids for block in blocks]
    assert d.eval[0].tolist() == ids[0][:129]
    windows = [block[start : start + 129] for block in ids[1:]
               for start in range(0, len(block) - 128, 129)]
    assert d.train.tensors[0].tolist() == windows
    assert d.eval_bytes == sum(len(tokenizer.id_to_token(index))  # a character for each byte
                               for row in d.eval.tolist() for index in row[1:])
    assert sum(len(tokenizer.id_to_token(index)) for index in ids[1]) == len(blocks[1].encode())
    assert abs(d.eval_bytes - 4000) < 300  # a window
    again = data.ladder.ladder(4, 2, "eltec+docs", eval_bytes=4000, vocab_size=300, **CPU)  # cached
    assert torch.equal(again.eval, d.eval) and again.eval_bytes == d.eval_bytes

    task = task_named("ladder")
    built = build(load_settings(task.config, [*task.scale("tiny"), "data.vocab_size=300"], task),
                  task)
    with torch.no_grad():
        built.model.head.weight.zero_()  # every piece is as likely
    bits = task.evaluate(built.objective, built.data)["eval_bits_per_byte"]
    targets = built.data.eval[:, 1:].numel()
    assert bits == pytest.approx(math.log2(300) * targets / built.data.eval_bytes)


def test_fineweb_is_read_as_gpt2_tokens_of_which_each_stands_for_its_bytes(empty_cache, tmp_path,
                                                                         monkeypatch):
    folder = tmp_path / "fineweb10B"
    folder.mkdir()
    rng = np.random.default_rng(0)
    parts = {fineweb.TRAIN: rng.integers(0, 50257, 40_000), fineweb.VALIDATION: rng.integers(
        0, 50257, 3000)}
    names = {f"{index}": index for index in range(50_256)} | {"<|endoftext|>": 50_256}
    contents = {name: np.array([20240520, 1, len(tokens), *[0] * 253], "<i4").tobytes()
                + tokens.astype("<u2").tobytes() for name, tokens in parts.items()}
    contents[fineweb.VOCABULARY] = json.dumps(names).encode()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        monkeypatch.setitem(fineweb.SHA256, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("ARS_DATA", str(tmp_path))
    tokens = parts[fineweb.VALIDATION]
    d = data.ladder.ladder(4, 2, "fineweb", 99, 2000, 50304, **CPU)
    inputs, targets = data.ladder.pairs(d.eval)
    assert inputs[0].tolist() == tokens[:99].tolist()
    assert d.eval_bytes == sum(len(str(index)) for row in targets.tolist() for index in row
                               if index != 50_256)
    assert d.vocab_size == 50304 and abs(d.eval_bytes - 2000) < 500
    assert data.ladder.pairs(d.train.tensors[0])[0][3].tolist() == parts[fineweb.TRAIN][
        300:399].tolist()
    with pytest.raises(ValueError, match="50304"):
        data.ladder.ladder(4, 2, "fineweb", **CPU)
    bad = contents[fineweb.TRAIN][:-2]
    (folder / fineweb.TRAIN).write_bytes(bad)
    with pytest.raises(DataError, match="is damaged"):
        data.ladder.ladder(4, 2, "fineweb", vocab_size=50304, **CPU)
    monkeypatch.setitem(fineweb.SHA256, fineweb.TRAIN, hashlib.sha256(bad).hexdigest())
    with pytest.raises(DataError, match="not a token file"):
        data.ladder.ladder(4, 2, "fineweb", vocab_size=50304, **CPU)


@pytest.mark.parametrize(("settings", "words"), [
    ({"vocab_size": 257}, "vocab_size must be 256 or in"),
    ({"corpus": "novel"}, "corpus must be one of"), ({"sequence_length": 0}, "sequence_length"),
    ({"steps": 0}, "steps must be"), ({"eval_bytes": 100}, "eval_bytes"),
    ({"corpus": "wikitext2"}, "blocks"),
    ({"eval_bytes": 10**9}, r'eval_bytes must be in .* text of corpus = "eltec\+novels"'),
    ({"batch_size": 10**6}, "more than one pass")])
def test_what_the_ladders_data_refuse(settings, words, tiny_data):
    with pytest.raises(ValueError, match=words):
        data.ladder.ladder(**{"eval_bytes": 2000, **settings}, **CPU)


def test_more_epochs_than_one_pass_are_refused_before_anything_is_written(tiny_data):
    task = task_named("ladder")
    overrides = [*task.scale("tiny"), "experiment.epochs=1000000", "experiment.device='cpu'"]
    with pytest.raises(ConfigError, match=r"\[data\] one pass over the training set is \d+ epochs"):
        build(load_settings(task.config, overrides, task), task)


TEI = """<TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader>not text</teiHeader><text><body>
  <head> CHAPTER\u00a0I. </head><p>It was\n  \u201cspring\u201d<note>1</note>\u2014so <hi>she</hi>
  said.</p><p><l>One line,</l><l>another.</l> And prose.</p><quote>A motto</quote></body></text>
  </TEI>"""


def test_paragraphs_of_novels_by_hand():
    assert list(sources.of_tei(TEI)) == [
        "CHAPTER I.", 'It was "spring"--so she said.', "One line,", "another.", "And prose.",
        "A motto"]
    print_lines = "\ufeffTITLE\r\nby me\r\nIt ended. And\r\nthen:\r\nno more\r\n"
    assert list(sources.of_print(print_lines)) == ["TITLE by me", "It ended. And then:", "no more"]
    apart = "A line\nAnother\n \n" + 9 * "B.\n\n" + "and so;\n\non."
    assert list(sources.of_print(apart)) == ["A line Another", *9 * ["B."], "and so; on."]


PROSE = "This line of a page has sixty characters or more, and eight words"
PAGE = f"""---
title: {PROSE}
---
<!-- {PROSE} in
a comment --> {PROSE}&nbsp;&mdash;\\_[a link](/to "it") and
| {PROSE} |
![{PROSE}](it.png)
<td>{PROSE}</td> \\- &lt;kept>, <a
href="x">too</a> &amp;lt;
{PROSE} = 0x80070005 (E_FAIL), 0x80070006 (E_HANDLE)
Sixty-characters-of-letters-are-no-prose-if-they-are-in-few-words
"""


def test_prose_of_markdown_by_hand():
    assert list(sources.of_markdown(PAGE)) == [
        f"{PROSE} &mdash;_a link and", f"{PROSE} \\- <kept>, too &lt;"]
    assert list(sources.of_markdown(PAGE.replace("\n", "\r\n"))) == [
        f"title: {PROSE}", f"{PROSE} &mdash;_a link and", f"{PROSE} \\- <kept>, too &lt;"]


def test_texts_are_downloaded_and_repeats_left_out(tmp_path, monkeypatch):
    long = "a paragraph of more than eighty characters, " * 3
    texts = {"level1/b.xml": TEI, "level1/ENG18460_Reynolds.xml": "skipped", "corpus/a.txt":
             f"Short.\n{long}\nShort.\n{long.upper()}!\n", "corpus/readme.md": "no",
             "desktop-src/a/TOC.md": PROSE, "desktop-src/b.md": f"{PROSE}\n{PROSE.upper()}\n",
             "desktop-src/a/c.md": f"{long}\n"}

    def urlopen(url, timeout):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in texts.items():
                member = tarfile.TarInfo(f"repository-commit/{name}")
                member.size = len(content.encode())
                archive.addfile(member, io.BytesIO(content.encode()))
        return io.BytesIO(file.getvalue())

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    folder = tmp_path / "cache" / sources.build("ladder")
    novels, eltec = (bz2.decompress((folder / f"{name}.txt.bz2").read_bytes()).decode()
                     for name in ("novels", "eltec"))
    assert novels == f"Short.\n{long.strip()}\nShort.\n"
    assert eltec.startswith("CHAPTER I.\n") and eltec.endswith("A motto\n")
    monkeypatch.setenv("ARS_DATA", str(tmp_path))
    docs = f"{long.strip()}\n{PROSE}\n".encode()
    monkeypatch.setitem(data.ladder.SHA256, "docs", hashlib.sha256(docs).hexdigest())
    assert data.ladder.load("docs")[0].tobytes() == docs
    assert (tmp_path / "cache" / "ladder_docs" / "docs.txt.bz2").exists()


def test_a_damaged_text_is_refused(tiny_data, tmp_path, monkeypatch):
    shutil.copytree(tiny_data / "ladder", tmp_path / "ladder")
    monkeypatch.setenv("ARS_DATA", str(tmp_path))
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    path = tmp_path / "ladder" / "eltec.txt.bz2"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot read .*eltec"):
        data.ladder.load("eltec")
    path.write_bytes(bz2.compress(b"another text"))
    with pytest.raises(DataError, match="damaged or the wrong file"):
        data.ladder.load("eltec")


# --- CIFAR-10


def drawn(count=4000, **settings):
    """An image whose bytes say where they come from, augmented many times."""
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[0] = torch.arange(1, 33)[:, None]  # row + 1
    image[1] = torch.arange(1, 33)[None, :]  # column + 1
    image[2] = 255
    generator = torch.Generator().manual_seed(0)
    settings = {"crop": 4, "flip": True, "cutout": 0, **settings}
    result = augment(image.expand(count, -1, -1, -1), generator, **settings)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.cifar10.MEAN, data.cifar10.STD))
    return result, ((result * std + mean) * 255).round().int()


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_is_a_pure_function_of_its_settings_and_seed(name, tiny_data):
    """Every file of data/: tensors to train and to evaluate on, the same ones for the same seed."""
    load = getattr(importlib.import_module(f"data.{name}"), name)
    small = {"wikitext2": {"sequence_length": 9, "vocab_size": 300},
             "ladder": {"eval_bytes": 2000}}.get(name, {})
    one, again = (load(batch_size=7, **CPU, **small) for _ in range(2))
    for split in ("eval", "test"):
        tensors = getattr(one, split, None)
        if tensors is not None:
            assert len({len(tensor) for tensor in tensors}) == 1
            assert all(map(torch.equal, tensors, getattr(again, split)))
    epochs = [[list(d.train.epoch(epoch)) for epoch in (0, 1)] for d in (one, again)]
    first, second = epochs[0]
    assert len(first) == len(one.train) and all(len(batch[0]) <= 7 for batch in first)
    assert all(map(torch.equal, sum(first, ()), sum(epochs[1][0], ())))
    assert not all(map(torch.equal, (b[0] for b in first), (b[0] for b in second)))


def test_crop_and_flip_have_the_published_distribution():
    _, pixels = drawn()
    middle = pixels[:, :2, 16, 16]  # never padding
    flipped = pixels[:, 1, 16, 15] > pixels[:, 1, 16, 16]
    assert 0.47 < flipped.float().mean() < 0.53
    rows = (middle[:, 0] - 17).tolist()
    columns = torch.where(flipped, 16 - middle[:, 1], middle[:, 1] - 17).tolist()
    seen = {}
    for row, column, mirrored in zip(rows, columns, flipped.tolist(), strict=True):
        assert -4 <= row <= 4
        assert -4 <= column <= 4
        seen[row, column, mirrored] = seen.get((row, column, mirrored), 0) + 1
    assert len(seen) == 81 * 2
    assert max(seen.values()) < 60  # 4000 / 162 = 25 expected of each


def test_crop_pads_with_black_before_normalization():
    _, pixels = drawn()
    corner = pixels[:, 2, 0, 0]
    assert set(corner.tolist()) == {0, 255}
    inside = ((pixels[:, 0, 16, 16] >= 17) & (pixels[:, 2, 16, 16] == 255)).float().mean()
    assert 0.5 < inside < 0.6  # five of the nine row offsets start at or below row 0


def test_cutout_is_a_clipped_square_of_zeros_after_normalization():
    result, _ = drawn(crop=0, flip=False, cutout=16)
    holes = (result == 0).all(1)
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), heights * widths)  # one rectangle each
    # A centre c in 0..31 covers max(0, c - 8) .. min(31, c + 7): 8 to 16 pixels.
    assert set(heights.tolist()) == set(widths.tolist()) == set(range(8, 17))
    # 32 centres: 17 of them give the full height.
    assert float((heights == 16).float().mean()) == pytest.approx(17 / 32, abs=0.03)


def test_nothing_is_changed_when_nothing_is_asked_for():
    result, pixels = drawn(4, crop=0, flip=False)
    assert torch.equal(pixels[0, 0, :, 0], torch.arange(1, 33, dtype=torch.int32))
    image = torch.stack([torch.full((32, 32), v, dtype=torch.uint8) for v in (0, 128, 255)])
    expected = (128 / 255 - 0.4822) / 0.1994
    assert float(normalize(image[None])[0, 1, 0, 0]) == pytest.approx(expected, abs=1e-6)
    assert result.shape == (4, 3, 32, 32)


def test_cifar_subset_is_the_same_for_every_seed(tiny_data):
    def labels(seed):
        d = cifar10(8, subset=0.3, seed=seed, device=CPU["device"])
        return sorted(torch.cat([y for _, y in d.train.epoch(0)]).tolist()), len(d.eval[1])

    assert labels(1) == labels(2)
    assert len(labels(1)[0]) == 30
    assert labels(1)[1] == 20


def test_cifar_validation_images_are_held_out_of_training_and_test_stays_the_test_set(tiny_data):
    whole = cifar10(8, **CPU)
    part = cifar10(8, validation=0.3, **CPU)
    assert whole.test is None
    assert all(map(torch.equal, part.test, whole.eval))
    assert (len(part.eval[0]), len(part.train.tensors[0])) == (30, 70)
    held, trained = part.eval[0].flatten(1), normalize(part.train.tensors[0]).flatten(1)
    assert torch.cdist(held, trained, p=1).min() > 1  # every image is in one of them only
    again = cifar10(8, validation=0.3, subset=0.5, seed=5, device=CPU["device"])
    assert torch.equal(again.eval[0], part.eval[0])  # the same for every seed and subset


def test_damaged_or_missing_cifar_is_one_clear_error(tiny_data, tmp_path, monkeypatch):
    folder = tmp_path / data.cifar10.PICKLED
    folder.mkdir()
    monkeypatch.setenv("ARS_DATA", str(tmp_path))
    with pytest.raises(DataError, match="data_batch_1"):
        cifar10(**CPU)
    (folder / "data_batch_1").write_bytes(pickle.dumps("something else"))
    with pytest.raises(DataError, match="MD5"):
        cifar10(**CPU)
    (folder / "data_batch_1").write_bytes(POINTER)
    with pytest.raises(DataError, match="Git LFS pointer"):
        cifar10(**CPU)


def test_cifar_that_cannot_be_downloaded_says_where_to_put_it(tiny_data, empty_cache, monkeypatch):
    for library in ("datasets.load_dataset", "torchvision.datasets.CIFAR10"):
        monkeypatch.setattr(library, unreachable)
    with pytest.raises(DataError, match=r"ARS_DATA/cifar-10-batches-py/") as error:
        cifar10(**CPU)
    assert str(error.value).count("OSError: no network") == 2 and "\n" not in str(error.value)
    assert list(empty_cache.iterdir()) == []


def unreachable(*_, **__):
    raise OSError("no network\nand no second line")


def hub_of(root, order):
    """The tiny CIFAR-10 as the hub has it: PNGs, the training batches in another order."""
    from datasets import Dataset, Features, Image, Value
    from PIL import Image as Pillow

    def split(names):
        images, labels = (torch.cat(part) for part in zip(*(data.cifar10._images(
            root / data.cifar10.PICKLED, name) for name in names), strict=True))
        pictures = [Pillow.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        return Dataset.from_dict({"img": pictures, "label": labels.tolist()},
                                 features=Features(img=Image(), label=Value("int64")))
    return {"train": split([f"data_batch_{n}" for n in order]), "test": split(["test_batch"])}


def test_cifar_from_the_hub_is_the_same_to_the_byte_and_kept(tiny_data, empty_cache, monkeypatch):
    monkeypatch.setenv("ARS_DATA", str(tiny_data))
    expected, hub = cifar10(8, **CPU), hub_of(tiny_data, (4, 3, 2, 5, 1))
    monkeypatch.setenv("ARS_DATA", str(empty_cache))
    monkeypatch.setattr("datasets.load_dataset", {"uoft-cs/cifar10": hub}.__getitem__)
    loaded = cifar10(8, **CPU)
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    for found in (loaded, cifar10(8, **CPU)):
        assert all(map(torch.equal, found.train.tensors, expected.train.tensors))
        assert all(map(torch.equal, found.eval, expected.eval))
        assert found.digest == expected.digest
    damaged = empty_cache / data.cifar10.BINARY / "test_batch.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="test_batch.bin is damaged.* SHA-256"):
        cifar10(8, **CPU)


def test_another_cifar_from_the_hub_is_not_kept(tiny_data, empty_cache, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", unreachable)
    for order in ((1, 2, 3, 4, 4), (1, 2, 3, 5)):  # one batch twice; one missing
        hub = hub_of(tiny_data, order)
        monkeypatch.setattr("datasets.load_dataset", lambda _, hub=hub: hub)
        with pytest.raises(DataError, match="train split do not match the checksum"):
            cifar10(8, **CPU)
    assert list(empty_cache.iterdir()) == []


@pytest.mark.parametrize("load", [lambda **s: cifar10(8, **s), lambda **s: wikitext2(
    2, sequence_length=9, vocab_size=300, **s)])
def test_data_sets_are_cut_into_epochs_when_asked(load, tiny_data):
    whole, cut = load(**CPU).train, load(epochs_per_pass=2, **CPU).train
    assert cut.examples == whole.examples // 2


def test_test_images_are_only_normalized(tiny_data):
    d = cifar10(8, **CPU)
    images, labels = data.cifar10._images(tiny_data / data.cifar10.PICKLED, "test_batch")
    assert torch.equal(d.eval[0], normalize(images))
    assert torch.equal(d.eval[1], labels)


@pytest.mark.parametrize("settings", [
    {"crop": -1}, {"cutout": -2}, {"crop": 10**9}, {"cutout": 10**30}, {"subset": 0.0},
    {"subset": 1.5}, {"subset": float("inf")}, {"validation": float("nan")}])
def test_cifar_refuses_impossible_settings(settings, tiny_data):
    with pytest.raises(ValueError, match=next(iter(settings))):
        cifar10(**settings, **CPU)


# --- Wikitext-2


def test_sentences_are_split_as_published():
    assert sentences(" A b . C 3.5 d .\n\n  \n = T = \n") == ["A b.", "C 3.", "5 d.", "= T =."]


def test_packing_by_hand():
    pieces = [[1, 1], [2, 2, 2], [9], [3, 3], [4, 4, 4, 4], [5] * 6, [6, 6]]
    expected = [[4, 4, 4, 4, 0], [2, 2, 2, 1, 1], [3, 3, 6, 6, 0]]
    assert pack(pieces, 5, 0).tolist() == expected
    # Only the newest row is tried: [2, 2] would still fit beside [4, 4, 4, 4].
    pieces = [[4] * 4, [3] * 3, [1] * 3, [2, 2]]
    assert pack(pieces, 6, 0).tolist() == [[4, 4, 4, 4, 0, 0], [3, 3, 3, 1, 1, 1],
                                           [2, 2, 0, 0, 0, 0]]


def test_chunks_by_hand():
    def rows(*tokens):
        return chunk(torch.tensor(tokens, dtype=torch.int32), 3, 0).tolist()

    assert rows(1, 2, 3, 4, 5, 6) == [[1, 2, 3], [3, 4, 5], [5, 6, 0]]
    assert rows(1, 2, 3, 4, 5) == [[1, 2, 3], [3, 4, 5]]
    assert rows(1, 2) == [[1, 2, 0]]
    assert rows(1) == rows() == []


@pytest.mark.parametrize("variant", ["v1", "raw"])
def test_contiguous_targets_are_the_whole_text_in_order(variant, tiny_data):
    d = wikitext2(4, variant, sequence_length=7, vocab_size=300, **CPU)
    inputs, targets = d.eval
    real = targets != -100
    tokens = torch.cat([inputs[0, :1], targets[real]]).tolist()
    from tokenizers import Tokenizer

    text = (tiny_data / data.wikitext2.FOLDERS[variant] / "valid.txt").read_text(encoding="utf-8")
    tokenizers = [Tokenizer.from_str(json.dumps(content)) for content in cached_tokenizers()]
    decoded = [tokenizer.decode(tokens) for tokenizer in tokenizers]
    assert text in decoded
    assert torch.equal(inputs[:, 1:][real[:, :-1]], targets[:, :-1][real[:, :-1]])
    first = tokenizers[decoded.index(text)].decode(tokens[:1])
    assert d.eval_bytes == len(text.encode()) - len(first.encode())
    assert 0 < d.test_bytes != d.eval_bytes


def cached_tokenizers():
    return [json.loads(path.read_bytes()[32:]) for path in data.CACHE.glob("tokenizer_*")]


def test_training_leaves_padding_out_unless_asked(tiny_data):
    settings = {"packing": "sentence", "sequence_length": 31, "vocab_size": 300, **CPU}
    d, padded = wikitext2(4, **settings), wikitext2(4, train_on_padding=True, **settings)
    for (inputs, targets), (_, kept) in zip(d.train.epoch(0), padded.train.epoch(0), strict=True):
        assert torch.equal(targets == -100, kept == d.pad_id)
        assert torch.equal(targets[targets != -100], kept[targets != -100])
        assert torch.equal(inputs[:, 1:][targets[:, :-1] != -100],
                           targets[:, :-1][targets[:, :-1] != -100])
    assert int((d.eval[1] == -100).sum()) > 0
    assert int((d.eval[0] == d.pad_id).sum()) > 0


def test_cached_ids_need_no_tokenizer_library(tiny_data, monkeypatch):
    settings = {"sequence_length": 9, "vocab_size": 300, **CPU}
    first = wikitext2(**settings)
    monkeypatch.setattr(data.wikitext2, "_tokenizer", None)
    again = wikitext2(**settings)
    assert torch.equal(first.eval[0], again.eval[0])
    assert (first.vocab_size, first.eval_bytes) == (again.vocab_size, again.eval_bytes)


def test_subset_takes_evenly_spaced_rows(tiny_data):
    whole = wikitext2(1, sequence_length=9, vocab_size=300, **CPU)
    half = wikitext2(1, sequence_length=9, vocab_size=300, subset=0.5, **CPU)
    assert half.train.examples == round(whole.train.examples / 2)
    assert torch.equal(half.train.tensors[0][0], whole.train.tensors[0][0])


def test_a_share_of_the_validation_rows_counts_its_own_bytes_and_leaves_test_whole(tiny_data):
    settings = {"sequence_length": 9, "vocab_size": 300, **CPU}
    whole, third = wikitext2(1, **settings), wikitext2(1, eval_subset=1 / 3, **settings)
    count = round(len(whole.eval[0]) / 3)
    rows = [index * len(whole.eval[0]) // count for index in range(count)]
    assert torch.equal(third.eval[1], whole.eval[1][rows])
    lengths = {}
    for tokenizer in cached_tokenizers():
        vocab = tokenizer["model"]["vocab"]
        lengths[len(vocab)] = {index: len(token) for token, index in vocab.items()}
    tokens = [index for index in third.eval[1].flatten().tolist() if index != -100]
    assert third.eval_bytes == sum(lengths[300][index] for index in tokens)
    assert third.test_bytes == whole.test_bytes
    assert torch.equal(third.test[0], whole.test[0])
    with pytest.raises(ValueError, match="eval_subset"):
        wikitext2(eval_subset=0.0, **settings)


def test_damaged_caches_are_made_again(tiny_data, empty_cache, monkeypatch, capsys):
    monkeypatch.setenv("ARS_DATA", str(tiny_data))
    settings = {"sequence_length": 9, "vocab_size": 280, **CPU}
    expected = wikitext2(4, **settings)
    (rows,), (tokenizer,) = (list(empty_cache.glob(name)) for name in ("wiki*", "tokenizer*"))
    whole, dice = {path: path.read_bytes() for path in (rows, tokenizer)}, random.Random(0)

    def check(path, content):
        path.write_bytes(content)
        if path is tokenizer:
            rows.unlink()
        again = wikitext2(4, **settings)
        for split in ("eval", "test"):
            assert all(map(torch.equal, getattr(again, split), getattr(expected, split)))
        assert all(map(torch.equal, again.train.tensors, expected.train.tensors))
        assert f"{path} is damaged" in capsys.readouterr().err
        assert path.read_bytes() == whole[path]

    for path, content in whole.items():
        for _ in range(30):
            flipped = bytearray(content)
            flipped[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            check(path, flipped)
        foreign = whole[rows if path is tokenizer else tokenizer]
        for other in (b"", content[:-1], content[:20], POINTER, b"{", foreign):
            check(path, other)


def test_processes_that_write_the_same_cache_at_once_agree(tmp_path):
    code = ("import pathlib, sys, data; data.CACHE = pathlib.Path(sys.argv[1]); content = bytes("
            "2**22); print(all(data.cached('name', lambda: content) == content for _ in range(9) if"
            " not (data.CACHE / 'name').unlink(missing_ok=True)))")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate() for process in processes] == [("True\n", "")] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


@pytest.mark.parametrize("made", ["tokenizer_*", "wikitext2_*"])
def test_a_full_disk_is_a_warning_and_leaves_nothing_behind(made, tiny_data, capsys):
    settings = {"sequence_length": 9, "vocab_size": 290, **CPU}
    wikitext2(4, **settings)
    cache = tiny_data / "cache"
    for path in {*cache.glob("wikitext2_*"), *cache.glob(made)}:
        path.unlink()
    before = set(cache.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        wikitext2(4, **settings)
        assert "warning: cannot write" in capsys.readouterr().err
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(cache.iterdir()) == before


def write_text(folder, monkeypatch, text):
    """`text` as every split of variant v1, and its checksum as the published one."""
    (folder / "wikitext-2").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (folder / "wikitext-2" / f"{split}.txt").write_bytes(text.encode())
    sums = dict.fromkeys(("train", "valid", "test"), hashlib.sha256(text.encode()).hexdigest())
    monkeypatch.setattr("data.wikitext2.SHA256", {"v1": sums})
    return sums


@pytest.mark.parametrize("packing", ["contiguous", "sentence"])
def test_special_tokens_in_a_text_are_text(packing, empty_cache, tmp_path, monkeypatch):
    text = " the <pad> of a <|endoftext|> dog . \n" * 50
    sums = write_text(tmp_path, monkeypatch, text)
    d = wikitext2(4, packing=packing, sequence_length=50, vocab_size=300, **CPU)
    assert d.digest == sums
    targets = d.eval[1][d.eval[1] != -100]
    assert int((targets == d.pad_id).sum()) == 0  # what counts as padding is at the rows' ends
    ends = (d.eval[1] == -100).int()
    assert torch.equal(ends, ends.cummax(1).values)
    per_line = len(text.encode()) // 50
    (tokenizer,) = cached_tokenizers()
    lengths = {index: len(token) for token, index in tokenizer["model"]["vocab"].items()}
    if packing == "contiguous":
        assert d.eval_bytes == len(text) - lengths[int(d.eval[0][0, 0])]
    else:  # the line without its spaces and line feed, and not the first token of a row
        firsts = sum(lengths[index] for index in d.eval[0][:, 0].tolist())
        assert d.eval_bytes == 50 * (per_line - 4) - firsts
    assert int((targets == 0).sum()) == (50 if packing == "sentence" else 0)  # our own ends


def test_encoding_in_pieces_is_encoding_whole():
    dice = random.Random(1)
    parts = [" ", "\n", " \n", " \n \n ", "  ", "\t", "a", "'s", "=", "12", ".", "\u00e9",
             "\u2028", "\u00a0", "\x1f", "\r", "the", " = T = \n"]
    text = "".join(dice.choice(parts) for _ in range(20_000))
    tokenizer = bpe.trained(text.splitlines(keepends=True), 400)  # merges across lines too
    assert "".join(lines(text)) == text and len(lines(text)) > 500
    pieces = encode(tokenizer, lines(text), "train", 3)
    assert [index for ids in pieces for index in ids] == tokenizer.encode(text).ids


def test_wikitext_from_the_hub_gets_its_blank_lines_back(empty_cache, tmp_path, monkeypatch):
    text = " \n = A = \n \n na\u00efve b c . \n \n"
    sums = write_text(tmp_path / "elsewhere", monkeypatch, text)
    rows = ["", " = A = \n", "", " na\u00efve b c . \n", ""]
    hub = {split: {"text": rows} for split in ("train", "validation", "test")}
    monkeypatch.setattr("datasets.load_dataset", lambda *names: {
        ("Salesforce/wikitext", "wikitext-2-v1"): hub}[names])
    assert data.wikitext2.texts("v1") == dict.fromkeys(sums, text)
    assert [path.name for path in empty_cache.iterdir()] == ["wikitext-2"]
    monkeypatch.setattr("datasets.load_dataset", None)
    assert data.wikitext2.texts("v1") == dict.fromkeys(sums, text)


def test_another_wikitext_from_the_hub_is_not_kept(tiny_data, empty_cache, monkeypatch):
    hub = {split: {"text": ["something else"]} for split in ("train", "validation", "test")}
    monkeypatch.setattr("datasets.load_dataset", lambda *_: hub)
    with pytest.raises(DataError, match="the hub's train split is damaged or the wrong file"):
        data.wikitext2.texts("raw")
    assert list(empty_cache.iterdir()) == []


def test_what_a_killed_process_left_in_the_cache_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    old, new = tmp_path / ".name.7.tmp", tmp_path / ".name.8.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    assert data.cached("name", lambda: b"content") == b"content"
    assert {path.name for path in tmp_path.iterdir()} == {"name", new.name}


def test_a_text_of_the_ladder_is_found_in_any_place_and_a_folder_is_completed(
        tiny_data, tmp_path, monkeypatch):
    (data.CACHE / "ladder").mkdir()  # empty: the files are in $ARS_DATA
    for name in ("eltec", "docs"):
        assert data.ladder._compressed(name) == tiny_data / "ladder" / f"{name}.txt.bz2"
    monkeypatch.setattr(data, "CACHE", tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "first").write_text("kept")
    with data.new_folder("kept") as folder:
        for name in ("first", "second"):
            (folder / name).write_text("new")
    assert [(tmp_path / "kept" / name).read_text() for name in ("first", "second")] == [
        "kept", "new"]


def test_the_run_that_downloaded_first_keeps_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    for content in ("first", "second"):
        with data.new_folder("kept") as folder:
            (folder / "file").write_text(content)
    assert (tmp_path / "kept" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("settings", [
    {"vocab_size": 100}, {"sequence_length": 0}, {"subset": 0.0}, {"variant": "v2"},
    {"sequence_length": 10**9}, {"vocab_size": 10**9}, {"subset": float("nan")},
    {"packing": "line"}, {"sequence_length": 1, "packing": "sentence", "vocab_size": 300}])
def test_wikitext_refuses_impossible_settings(settings, tiny_data):
    with pytest.raises(ValueError, match=next(iter(settings))):
        wikitext2(**settings, **CPU)


def test_missing_or_other_wikitext_is_one_error(tiny_data, empty_cache, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(DataError, match=r"data/cache/wikitext-2-raw/ or \$ARS_DATA"):
        wikitext2(variant="raw", **CPU)
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    with pytest.raises(DataError, match="incomplete"):
        wikitext2(**CPU)
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_bytes(POINTER)
    with pytest.raises(DataError, match="train.txt is a Git LFS pointer"):
        wikitext2(**CPU)
    for split in ("train", "valid", "test"):
        source = tiny_data / "wikitext-2" / f"{split}.txt"
        (folder / f"{split}.txt").write_text(source.read_text().replace(" . ", " ."))
    with pytest.raises(DataError, match="train.txt is damaged or the wrong file: its SHA-256"):
        wikitext2(**CPU)


@pytest.mark.skipif(REAL_DATA is None, reason="ARS_DATA names no folder with the real data")
def test_the_real_files_are_what_they_should_be(monkeypatch):
    d = cifar10(**CPU)
    assert (d.train.examples, len(d.eval[1])) == (50_000, 10_000)
    assert torch.bincount(d.eval[1]).tolist() == [1000] * 10
    for name, checksum in d.digest.items():
        pixels, labels = data.cifar10._pickled(data.locate(data.cifar10.PICKLED), name)
        records = np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1)
        assert hashlib.sha256(records.tobytes()).hexdigest() == checksum
    texts = data.wikitext2.texts("v1")
    assert texts["train"].count("<unk>") == 54_625
    for split, text in texts.items():
        assert "<pad>" not in text and "<|endoftext|>" not in text
        assert text.count("\n") == {"train": 36_718, "valid": 3_760, "test": 4_358}[split]
        # The hub keeps a row per line and drops the characters of blank ones.
        rows = [line if line.strip() else "" for line in text.splitlines(keepends=True)]
        assert "".join(row or " \n" for row in rows) == text


@pytest.mark.skipif(REAL_DATA is None, reason="ARS_DATA names no folder with the real data")
def test_tokens_of_the_real_text_are_those_of_one_plain_encoding():
    """As before texts were encoded in pieces and special tokens in them were text."""
    text = data.wikitext2.texts("v1")["valid"]
    tokenizer = bpe.trained(text.splitlines(keepends=True), 600)
    tokenizer.encode_special_tokens = False
    expected = tokenizer.encode(text).ids
    tokenizer.encode_special_tokens = True
    pieces = encode(tokenizer, lines(text), "valid")
    assert [index for ids in pieces for index in ids] == expected
