"""Attacks on configs, run folders and running processes, each made from a seed.

python -m tests.chaos [--minutes N | --tries N] [--seed S] [ATTACK ...]

Prints a table: attack, tries, survived, the first seed that failed; `--seed S --tries 1 ATTACK`
replays that one. The tiny data sets of the tests are used. Every attack is tried in a process of
its own kind, so that one that dies, hangs or takes all memory is a failure like any other.
"""

import contextlib
import errno
import importlib
import io
import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.chaos_options import parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

import pytest
import torch

from exp.harness import checkpoint, cli
from exp.harness.build import build
from exp.harness.config import complete, load_settings
from exp.harness.errors import ConfigError
from exp.harness.folder import FILES
from exp.harness.task import task_named, tasks, train_function
from exp.harness.toml import apply_override, read_toml, to_toml
from exp.jobs.launch import Local
from exp.jobs.queue import Job, run_jobs
from exp.report.forecast import forecast, total
from optimizer import available_optimizers
from tests.conftest import TINY, use_data, write_data

MEMORY = 8 * 2**30  # bytes of address space of a process that is attacked
PATIENCE = 300  # seconds after which an attack counts as hung
CONFIGS = {name: [path for path in sorted(Path("config").glob("*.toml"))
                  if f'task = "{name}"' in path.read_text(encoding="utf-8")] for name in tasks()}
GROKKING = Path("config/lrp_grok_adamw_600e.toml")
QUEUED = 400  # epochs of a queued run
FORK = multiprocessing.get_context("fork")


class Failed(AssertionError):
    """The project did not survive an attack: the attack, and what happened."""


class Raw:
    """Text that `to_toml` writes as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


@dataclass
class Mutant:
    """A config that something was done to. outcome: what must come of it: "refused", "accepted",
    or "" for either."""

    task: str
    text: bytes
    said: str
    outcome: str = ""
    overrides: tuple[str, ...] = ()


# --- mutations of a config

ODD = ["nan", "-nan", "inf", "-inf", "0", "-1", "-0.0", "1e300", "-1e300", "1e-300", "5e-324",
       "2147483648", "9223372036854775807", "1000000000", "1" + "0" * 30, "1", "2", "0.5", "1.5"]
SIZES = ["0", "1", "2", "3", "7", "17", "-1", "5000", "1000000000", "1099511627776"]
POSITIVE = ("lr", "betas", "eps", "weight_decay", "epochs", "seed", "batch_size", "subset", "rho",
            "fraction", "p", "vocab_size", "sequence_length", "warmup_epochs", "momentum", "k")
WRONG = {"text": '"spam"', "empty": '""', "number": '"1e-3"', "truth": "true", "list": "[]",
         "lists": "[[1]]", "one": "[1.0]", "table": "{}", "tables": "{ a = { b = 1 } }",
         "date": "1979-05-27", "time": "07:32:00", "many": "[1, 2, 3, 4, 5]",
         "mixed": '[0.9, "x"]'}
CLASSES = ["torch:AdamW", "torch.optim:SGD", "torch.optim:Optimizer", "torch.optim:SparseAdam",
           "torch.optim:spam", "torch.nn:Linear", "torch:spam", "spam:Spam", "os:system",
           "builtins:exec", "builtins:object", "subprocess:Popen", "exp.harness.run:Run",
           "tests.chaos:Mutant", "optimizer.muon:Muon", "../spam:X", "/etc/passwd:X", "a/b:C",
           ":", ":X", "torch:", "torch.optim:AdamW:AdamW", "torch..optim:SGD", ".torch:SGD",
           "__main__:X", "sys:path", "torch.optim.lr_scheduler:StepLR", "torch.optim:__name__",
           "pytorch_optimizer:Lion", "pytorch_optimizer:AdaHessian", "pytorch_optimizer:SophiaH",
           "pytorch_optimizer:Muon", "pytorch_optimizer:SAM", "pytorch_optimizer:Lookahead",
           "pytorch_optimizer:LOMO", "pytorch_optimizer:DPOptimizer", "pytorch_optimizer:QHAdam",
           "pytorch_optimizer:AdamMini", "pytorch_optimizer:Prodigy", "numpy:ndarray",
           "torch.optim:AdamW\u0000", "törch:Adam", "torch:" + "A" * 300, "x" * 300, "", " ",
           "\u0000", "adamw\n", "ADAMW", "ad-am_w", "🦊", "../muon", "parts", "__init__", "self"]
WRAPPERS = ["sam", "asam", "gsam", "looksam", "lookahead", "qk_clip", "adamw", "muon", "spam"]


def leaves(settings: dict, kinds: tuple = (object,)) -> list[tuple[dict, str]]:
    """Every (table, key) below `settings` whose value is none of the tables."""
    found = []
    for key, value in settings.items():
        if isinstance(value, dict):
            found += leaves(value, kinds)
        elif isinstance(value, kinds):
            found.append((settings, key))
    return found


def tiny(task: str, path: Path) -> dict:
    """The settings of a config at the tiny scale of its task, for one epoch."""
    settings = read_toml(path)
    for override in (*TINY[task], "experiment.epochs=1", 'experiment.device="cpu"'):
        apply_override(settings, override)
    return settings


def wrong_type(rng: random.Random, settings: dict) -> tuple[str, str]:
    table, key = rng.choice(leaves(settings))
    before = table[key]
    name = rng.choice(list(WRONG))
    table[key] = Raw(WRONG[name])
    fits = (isinstance(before, str) and name in ("text", "empty", "number")
            or isinstance(before, bool) and name in ("truth", "list")
            or isinstance(before, list))
    return f"{key} = {WRONG[name]}", "" if fits else "refused"


def odd_number(rng: random.Random, settings: dict) -> tuple[str, str]:
    table, key = rng.choice([leaf for leaf in leaves(settings, (int, float, list))
                             if not isinstance(leaf[0][leaf[1]], bool)])
    text = number = rng.choice(ODD)
    if isinstance(table[key], list):
        items = [repr(item) for item in table[key]]
        items[rng.randrange(len(items))] = number
        text = f"[{', '.join(items)}]"
    table[key] = Raw(text)
    value = float(number)
    never = not math.isfinite(value) or value < 0 and key in POSITIVE
    return f"{key} = {text}", "refused" if never else ""


def odd_size(rng: random.Random, settings: dict) -> tuple[str, str]:
    parts = {name: settings[name] for name in ("experiment", "data", "model")}
    whole = [leaf for leaf in leaves(parts, (int,)) if not isinstance(leaf[0][leaf[1]], bool)]
    said = []
    for table, key in rng.sample(whole, rng.randint(1, 2)):
        table[key] = Raw(rng.choice(SIZES))
        said.append(f"{key} = {table[key]}")
    return ", ".join(said), ""


def keys(rng: random.Random, settings: dict) -> tuple[str, str]:
    table, key = rng.choice(leaves(settings))
    way = rng.choice(["rename", "remove", "add", "move"])
    if way == "remove":
        del table[key]
        return f"without {key}", ""
    if way == "add":
        new = rng.choice(["spam", "", " ", "params", "self", "base", "model", "closure", "kwargs",
                          "args", "*", "🦊", "a.b", "\u0000", "__class__", "x" * 300])
        new = new if new not in table else "spam"
        table[new] = Raw(rng.choice(["1", '"x"', "true", "[]"]))
        return f"{new[:20]!r} = {table[new]}", "refused"
    if way == "move":
        other = rng.choice([t for t in settings.values() if isinstance(t, dict)])
        other[key] = table.pop(key)
        return f"{key} in another table", ""
    new = rng.choice([key + "s", key[:-1], key.upper(), f" {key}", key.replace("_", "-") + "-",
                      "\ufeff" + key, key + "\u200b", "ⅼ" + key[1:]])
    table[new] = table.pop(key)
    return f"{key} named {new!r}", "refused"


def tables(rng: random.Random, settings: dict) -> tuple[str, str]:
    name = rng.choice(list(settings))
    way = rng.choice(["rename", "remove", "add", "scalar", "list", "nest", "empty", "array"])
    if way == "rename":
        new = rng.choice([name.upper(), name + "s", name[:-1], f" {name}", "spam"])
        settings[new] = settings.pop(name)
        return f"[{name}] named [{new}]", "refused"
    if way == "add":
        new = rng.choice(["spam", "", "🦊", "tuning", "scales", "a.b"])
        settings[new] = {"x": 1}
        return f"a table [{new}]", "refused"
    if way == "remove":
        del settings[name]
        return f"without [{name}]", "" if name == "schedule" else "refused"
    if way == "nest":
        settings[name] = {**settings[name], name: dict(settings[name])}
        return f"[{name}.{name}]", "refused"
    value = {"scalar": Raw("3"), "list": Raw("[]"), "empty": {}, "array": Raw("[{}, {}]")}[way]
    settings[name] = value
    optional = way == "empty" and name in ("data", "schedule")
    return f"{name} = {value}", "" if optional else "refused"


def names(rng: random.Random, settings: dict) -> tuple[str, str]:
    where = rng.choice(["optimizer"] * 4 + ["model", "experiment", "schedule"])
    name = rng.choice(CLASSES + (available_optimizers() if where == "optimizer" else TASKS))
    key = "task" if where == "experiment" else "name"
    if where == "optimizer" and rng.random() < 0.7:
        settings[where] = {}
    settings.setdefault(where, {})[key] = name
    return f"{where}.{key} = {name[:60]!r}", ""


TASKS = [*tasks(), "grokking_transformer", "resnet18", "qwen3", "constant", "cosine"]


def wrap(rng: random.Random, settings: dict) -> tuple[str, str]:
    said = []
    for _ in range(rng.randint(1, 4)):
        name = rng.choice([*WRAPPERS, *rng.sample(available_optimizers(), 1)])
        inner = rng.choice([{}, {}, {"rho": 0.05}, {"k": 0}, {"k": 3}, {"lr": -1.0},
                            {"alpha": 2.0}, {"spam": 1}, {"sam": {}}, {"rho": math.inf},
                            {"betas": [2.0, 2.0]}, {"lr": 0.01}])
        settings["optimizer"][name] = dict(inner)
        said.append(f"[optimizer.{name}] {inner}")
    return ", ".join(said), "refused" if "spam" in " ".join(said) else ""


def written(rng: random.Random, settings: dict) -> tuple[bytes, str, str]:
    """Damage of the text itself."""
    text = to_toml(settings).encode()
    at = rng.randrange(len(text))
    first = text.split(b"\n")[1]
    return rng.choice([
        (b"\xef\xbb\xbf" + text, "a byte-order mark", "accepted"),
        (text.replace(b"\n", b"\r\n"), "CRLF", "accepted"),
        (text.decode().encode("utf-16"), "UTF-16", "refused"),
        (text[:at], f"cut at {at}", ""), (b"", "empty", "refused"),
        (text[:at] + bytes([text[at] ^ 1 << rng.randrange(8)]) + text[at + 1:], f"bit at {at}", ""),
        (text[:at] + b"\0" + text[at:], f"NUL at {at}", "refused"),
        (text[:at] + b"\xff" + text[at:], f"0xff at {at}", "refused"),
        (text + text, "twice", "refused"),
        (text.replace(b"\n[data]", first + b"\n\n[data]"), "one key twice", ""),
        (text + b"\n[data]\n", "one table twice", "refused"),
        (b"a = " + b"[" * 5000 + b"]" * 5000 + b"\n" + text, "5000 arrays deep", "refused"),
        (b"[" + b".".join([b"a"] * 3000) + b"]\n" + text, "a table 3000 deep", "refused"),
        (b"a = 1" + b"0" * 9000 + b"\n" + text, "a number of 9001 digits", "refused"),
        (b"a = \"" + b"x" * 10**6 + b"\"\n" + text, "a long string", "refused"),
        (b"[[optimizer]]\n" + text, "an array of tables", "refused")])


def overridden(rng: random.Random, settings: dict) -> tuple[str, tuple[str, ...], str]:
    """`--set` words: (said, words, outcome)."""
    path = rng.choice([f"{table}.{key}" for table, content in settings.items() for key in content]
                      + ["optimizer", "", ".", "optimizer.", ".lr", "a.b.c", "experiment.epochs.x",
                         "optimizer.sam.rho", "optimizer.adamw.lr", "model.🦊", "a b.c"])
    value = rng.choice([*ODD, *WRONG.values(), "", "=", "spam", "1\n2", "'x", "[1", "{a=1}",
                        "{ name = \"lion\" }", "1 # x", "1\nspam = 2", "\u0000", '"""x"""'])
    word = rng.choice([f"{path}={value}"] * 5 + [path, f"{path} = {value}", f"={value}"])
    return f"--set {word!r}", (word,), "refused" if value.strip("-") == "nan" else ""


MUTATIONS: dict[str, Callable] = {
    "types": wrong_type, "numbers": odd_number, "sizes": odd_size, "keys": keys, "tables": tables,
    "names": names, "wrappers": wrap, "text": written, "overrides": overridden}


def mutant(kind: str, seed: int) -> Mutant:
    """The config that a kind of mutation makes of a seed."""
    rng = random.Random(f"{kind} {seed}")
    task = rng.choice(list(CONFIGS))
    path = rng.choice(CONFIGS[task])
    settings = tiny(task, path)
    words: tuple[str, ...] = ()
    if kind == "text":
        text, said, outcome = written(rng, settings)
    else:
        if kind == "overrides":
            said, words, outcome = overridden(rng, settings)
        else:
            said, outcome = MUTATIONS[kind](rng, settings)
        text = to_toml(settings).encode(errors="surrogatepass")
    return Mutant(task, text, f"{path.stem}: {said}", outcome, words)


# --- attacks: (rng, an empty folder) -> None, or Failed

def config(kind: str) -> Callable[[int, Path], None]:
    """The attack with mutated configs: refused, or built and trained for a step."""
    def attack(seed: int, place: Path) -> None:
        attempt(mutant(kind, seed), place)
    return attack


def attempt(mutant: Mutant, place: Path) -> None:
    """Load, build and take a step. Raises Failed for any exception but those for users."""
    path, task = place / "config.toml", task_named(mutant.task)
    path.write_bytes(mutant.text)
    try:
        settings = load_settings(path, mutant.overrides, task)
        built = build(settings, task)
    except (ConfigError, cli.DataError) as error:
        require(mutant.outcome != "accepted", mutant.said, f"refused: {error}")
        require_readable(mutant.said, str(error))
    except BaseException as error:
        raise Failed(f"{mutant.said}: {type(error).__name__} while building: {error}") from error
    else:
        require(mutant.outcome != "refused", mutant.said, "was accepted")
        train(built, settings, mutant.said)
    require(sorted(file.name for file in place.iterdir()) == ["config.toml"], mutant.said,
            "something was written")


def train(built, settings: dict, said: str) -> None:
    try:
        again = complete(tomllib.loads(to_toml(settings)), built.task)
        built.schedule.set_lr(0)
        built.optimizer.step(built.objective.on(next(built.data.train.epoch(0))))
    except torch.linalg.LinAlgError:
        return  # the run would be recorded as diverged
    except BaseException as error:
        raise Failed(f"{said}: {type(error).__name__} in the first step: {error}") from error
    require(again == settings, said, "other settings after writing and reading them")


def require(holds: bool, said: str, otherwise: str) -> None:
    if not holds:
        raise Failed(f"{said}: {otherwise}")


def require_readable(said: str, message: str) -> None:
    """One line for every problem, each of which names its place."""
    starts = ("[", "unknown table", "missing table", "--set", "cannot read", "no config file",
              "WikiText", "CIFAR", "wikitext", "cifar")
    for line in message.split("\n"):
        require(line.startswith(starts), said, f"unreadable line {line!r} in {message!r}"[:900])
        require(len(line) < 2500, said, f"a line of {len(line)} characters: {line[:200]!r}")


def launch(folder: Path, *options: str, epochs: int, task: str = "grokking",
           path: Path = GROKKING, words: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run the training script in this process; its exit status and stderr."""
    words = (*TINY[task], f"experiment.epochs={epochs}", 'experiment.device="cpu"', *words)
    arguments = ["--config", str(path), "--output", str(folder), *options]
    arguments += [part for word in words for part in ("--set", word)]
    with contextlib.redirect_stderr(io.StringIO()) as errors, \
            contextlib.redirect_stdout(io.StringIO()):
        status = cli.launch(task_named(task), train_function(task), arguments)
    return status, errors.getvalue()


def record(folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items()
             if key not in ("seconds", "peak_memory_bytes")} for line in lines]


def require_whole(folder: Path, epochs: int, said: str, root: Path | None = None) -> None:
    """The record is that of an undisturbed run of as many epochs."""
    require(record(folder) == undisturbed(root or folder.parents[1], epochs), said,
            f"the record is not that of an undisturbed run of {epochs} epochs")


@cache
def undisturbed(root: Path, epochs: int) -> list[dict]:
    folder = Path(tempfile.mkdtemp(dir=root)) / "run"
    launch(folder, epochs=epochs)
    return record(folder)


@cache
def finished(root: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=root)) / "run"
    launch(folder, epochs=2)
    return folder


def warm_up(root: Path, everything: bool) -> None:
    """Do here what every process that is attacked would do again: import, tokenize. everything:
    for any task and library."""
    finished(root)
    text_tensors()
    if everything:
        importlib.import_module("pytorch_optimizer")
    for name in tasks() if everything else ():
        settings = complete(tiny(name, task_named(name).config), task_named(name))
        build(settings, task_named(name))


def runs(seed: int, place: Path) -> None:
    """Mutated configs through the command line, to the end of an epoch."""
    rng = random.Random(f"runs {seed}")
    case = mutant(rng.choice(list(MUTATIONS)), rng.randrange(10**6))
    path, folder = place / "config.toml", place / "run"
    path.write_bytes(case.text)
    try:
        status, errors = launch(folder, epochs=1, task=case.task, path=path, words=case.overrides)
    except BaseException as error:
        raise Failed(f"{case.said}: {type(error).__name__}: {error}") from error
    require(status in (0, 2, 3), case.said, f"exit status {status}: {errors}")
    if status == 2:
        require("\nerror: " in "\n" + errors, case.said, f"stderr {errors!r}")
        require(not folder.exists(), case.said, "something was written")
    else:
        summary = json.loads((folder / "summary.json").read_text())
        require(summary["status"] in ("completed", "diverged"), case.said, f"summary {summary}")


def damage(rng: random.Random, path: Path, others: list[Path]) -> str:
    """Damage one file of a run; returns how."""
    content = path.read_bytes()
    at = rng.randrange(max(1, len(content)))
    flipped = bytes([content[at] ^ 1 << rng.randrange(8)]) if content else b"x"
    way, new = rng.choice([
        ("gone", None), ("empty", b""), (f"cut at {at}", content[:at]),
        (f"bit at {at}", content[:at] + flipped + content[at + 1:]),
        (f"zeros from {at}", content[:at] + bytes(len(content) - at)),
        ("twice", content * 2), ("noise", rng.randbytes(200)),
        ("a directory", None), ("another file", rng.choice(others).read_bytes())])
    path.unlink()
    if way == "a directory":
        path.mkdir()
    elif new is not None:
        path.write_bytes(new)
    return f"{path.name} {way}"


def neighbours(seed: int, place: Path) -> None:
    """Damaged files of a run: made whole by --resume, or refused in one line untouched."""
    resume_damaged(random.Random(f"neighbours {seed}"), place, FILES)


def checkpoints(seed: int, place: Path) -> None:
    """The same with latest.pt, best.pt or both."""
    resume_damaged(random.Random(f"checkpoints {seed}"), place, ("latest.pt", "best.pt"))


def resume_damaged(rng: random.Random, place: Path, names: tuple[str, ...]) -> None:
    folder = place / "run"
    shutil.copytree(finished(place.parent), folder)
    files = [folder / name for name in names if (folder / name).exists()]
    others = sorted(finished(place.parent).iterdir())
    said = ", ".join(damage(rng, path, others) for path in rng.sample(files, rng.randint(1, 2)))
    before = contents(folder)
    try:
        status, errors = launch(folder, "--resume", epochs=3)
    except BaseException as error:
        raise Failed(f"{said}: {type(error).__name__}: {error}") from error
    if status == 0:
        require_whole(folder, 3, said)
        return
    last = errors.splitlines()[-1:]
    require(status == 2, said, f"exit status {status}: {errors}")
    require(len(last) == 1 and last[0].startswith("error: "), said, f"stderr {errors!r}")
    require(contents(folder) == before, said, "refused, and yet something was written")


def cache(seed: int, place: Path) -> None:
    """Damaged texts and caches of Wikitext-2: the same tokens as before, or refused in one line."""
    rng = random.Random(f"cache {seed}")
    expected = text_tensors()
    shutil.copytree(place.parent / "data", place / "data")
    kept = [path for path in (place / "data" / "cache").iterdir()
            if path.name.startswith(("wikitext2", "tokenizer"))]
    texts = sorted((place / "data" / "wikitext-2").iterdir())
    path = rng.choice(sorted(kept) * 2 + texts)
    said = damage(rng, path, [*kept, *texts])
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        patch.setenv("ARS_DATA", str(place / "data"))
        patch.setattr("data.CACHE", place / "data" / "cache")
        try:
            tensors = text_tensors()
        except (cli.DataError, OSError) as error:
            require(path in texts or path.is_dir(), said, f"refused: {error}")
            require("\n" not in str(error), said, f"unreadable {str(error)!r}")
        else:
            require(all(map(torch.equal, tensors, expected)), said, "other tokens, silently")


def text_tensors() -> list[torch.Tensor]:
    """Everything that the Wikitext-2 task makes of its text, at the tiny scale."""
    task = task_named("wikitext2")
    settings = complete(tiny("wikitext2", task.config), task)
    made = task.data(**settings["data"], seed=0, device=torch.device("cpu"))
    numbers = torch.tensor([made.vocab_size, made.pad_id, made.eval_bytes, made.test_bytes])
    return [*made.train.tensors, *made.eval, *made.test, numbers]


def disk(seed: int, place: Path) -> None:
    """A disk that is full from some byte of a file, or from some write, on: one line and exit
    status 1; resumed, the run is that of a disk with room."""
    rng = random.Random(f"disk {seed}")
    most, writes = rng.choice([(rng.randrange(300_000), None), (None, rng.randrange(25))])
    said = f"at most {most} bytes per file" if writes is None else f"full after {writes} writes"

    def script() -> None:
        checkpoint.CHECKPOINT_SECONDS = 0
        if writes is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        else:
            sync, count = os.fsync, itertools.count()

            def full(descriptor: int) -> None:
                if next(count) >= writes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                sync(descriptor)
            os.fsync = full
        status, errors = launch(place / "run", epochs=5)
        readable = status == 1 and errors.splitlines()[-1].startswith("error: cannot write")
        os._exit(0 if status == 0 or readable else 99)

    process = FORK.Process(target=script)
    process.start()
    process.join()
    require(process.exitcode == 0, said, f"exit status {process.exitcode}")
    status, errors = launch(place / "run", "--resume", epochs=5)
    require(status == 0, said, f"exit status {status} with room again: {errors}")
    require_whole(place / "run", 5, said)


def queue(seed: int, place: Path) -> None:
    """A queue that is killed while its runs start or train, then one queue or two at once: every
    run is that of a queue that was left alone."""
    rng = random.Random(f"queue {seed}")
    moment, workers, queues = rng.uniform(0, 30), rng.randint(1, 2), rng.randint(1, 2)
    said = f"{workers} workers, killed after {moment:.1f} s, then {queues}"
    words = (*TINY["grokking"], f"experiment.epochs={QUEUED}", 'experiment.device="cpu"')
    jobs = [Job("grokking", GROKKING, 42, place / f"job{number}" / "run", words)
            for number in range(2)]

    def script() -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            statuses = run_jobs(jobs, Local(workers))
        os._exit(int(any(statuses.values())))

    processes = [FORK.Process(target=script) for _ in range(1 + queues)]
    processes[0].start()
    time.sleep(moment)
    processes[0].kill()
    for process in processes[1:]:
        process.start()
    for process in processes:
        process.join()
    statuses = [process.exitcode for process in processes[1:]]
    require(not any(statuses), said, f"exit statuses {statuses}")
    for job in jobs:
        require_whole(job.folder, QUEUED, said, place.parent)


def contents(folder: Path) -> dict:
    return {path.name: path.read_bytes() if path.is_file() else None
            for path in folder.iterdir() if path.name != "lock"}


def writers(seed: int, place: Path) -> None:
    """Two processes on one folder: one trains, the other trains later or is refused."""
    rng = random.Random(f"writers {seed}")
    modes = [rng.choice([(), ("--resume",), ("--overwrite",)]) for _ in range(2)]
    pause = rng.choice([0, rng.uniform(0, 0.5)])
    said = f"{modes}, {pause:.3f} s between them"
    both = [begin(place / "run", *mode, epochs=5) for mode in modes[:1]]
    time.sleep(pause)
    both += [begin(place / "run", *mode, epochs=5) for mode in modes[1:]]
    for process in both:
        process.join()
    statuses = sorted(process.exitcode for process in both)
    require(statuses in ([0, 0], [0, 2]), said, f"exit statuses {statuses}")
    require_whole(place / "run", 5, said)


def kills(seed: int, place: Path) -> None:
    """SIGKILL at any moment, up to three times: resumed to what an undisturbed run gives."""
    rng = random.Random(f"kills {seed}")
    moments = [rng.uniform(0, 0.8) for _ in range(rng.randint(1, 3))]
    said = f"killed after {', '.join(f'{moment:.3f}' for moment in moments)} s"
    folder = place / "run"
    for moment in moments:
        process = begin(folder, "--resume", epochs=10**6)
        time.sleep(moment)
        process.kill()
        process.join()
        require(process.exitcode == -signal.SIGKILL, said, f"exit status {process.exitcode}")
    lines = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
    epochs = lines.count("\n") + 2
    status, errors = launch(folder, "--resume", epochs=epochs)
    require(status == 0, said, f"exit status {status}: {errors}")
    require_whole(folder, epochs, said)


def begin(folder: Path, *options: str, epochs: int) -> multiprocessing.Process:
    """Start the training script in a process of its own; it checkpoints after every epoch."""
    def script() -> None:
        checkpoint.CHECKPOINT_SECONDS = 0
        sys.exit(launch(folder, *options, epochs=epochs)[0])
    process = FORK.Process(target=script)
    process.start()
    return process


ATTACKS: dict[str, Callable[[int, Path], None]] = {
    **{kind: config(kind) for kind in MUTATIONS}, "runs": runs, "neighbours": neighbours,
    "checkpoints": checkpoints, "cache": cache, "writers": writers, "kills": kills, "disk": disk,
    "queue": queue}


# --- trying attacks

class Victim:
    """A process in which attacks are tried, one after the other, until one of them ends it."""

    def __init__(self, attack: Callable[[int, Path], None], root: Path) -> None:
        self.connection, theirs = FORK.Pipe()
        self.process = FORK.Process(target=_serve, args=(attack, root, theirs))
        self.process.start()
        theirs.close()

    def survive(self, seed: int) -> str:
        """Why the attack of this seed was not survived; empty if it was."""
        self.connection.send(seed)
        if not self.connection.poll(PATIENCE):
            self.end()
            return f"hangs: no answer in {PATIENCE} s"
        try:
            return self.connection.recv()
        except EOFError:
            self.end()
            return f"the process died with status {self.process.exitcode}"

    def end(self) -> None:
        self.connection.close()
        self.process.join(timeout=0.5)
        self.process.kill()
        self.process.join()


def _serve(attack: Callable[[int, Path], None], root: Path, connection) -> None:
    with limited_memory(), contextlib.suppress(EOFError):
        while True:
            seed = connection.recv()
            place = Path(tempfile.mkdtemp(dir=root))
            connection.send(outcome(attack, seed, place))
            shutil.rmtree(place, ignore_errors=True)


def outcome(attack: Callable[[int, Path], None], seed: int, place: Path) -> str:
    """Why an attack was not survived; empty if it was."""
    try:
        attack(seed, place)
    except Failed as failure:
        return str(failure)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Let this process have MEMORY bytes at most."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempts(name: str, seeds: Iterator[int], root: Path) -> Iterator[tuple[int, str]]:
    """Try an attack with each seed; (seed, why it was not survived or "")."""
    victim = None
    for seed in seeds:
        if victim is None or not victim.process.is_alive():
            victim = Victim(ATTACKS[name], root)
        yield seed, victim.survive(seed)
    if victim is not None and victim.process.is_alive():
        victim.end()


def table(results: dict[str, list[tuple[int, str]]]) -> str:
    """Attack, tries, survived, the first failure and how to replay it."""
    lines = [f"{'attack':<12}{'tries':>7}{'survived':>10}  first failure"]
    return "\n".join(lines + [row(name, tries) for name, tries in results.items()])


def row(name: str, tries: list[tuple[int, str]]) -> str:
    """The row of one attack in the table."""
    failures = [(seed, why) for seed, why in tries if why]
    first = f"--seed {failures[0][0]} --tries 1 {name}: {failures[0][1]}" if failures else ""
    return f"{name:<12}{len(tries):>7}{len(tries) - len(failures):>10}  {first[:400]}"


def main(arguments: list[str] | None = None) -> int:
    """Try the attacks, print the table; exit status 0 if all were survived, 1 if not."""
    options = parse(arguments)
    chosen = options.attacks or list(ATTACKS)
    if unknown := [name for name in chosen if name not in ATTACKS]:
        print(f"error: no attack {unknown[0]!r}; there are: {', '.join(ATTACKS)}", file=sys.stderr)
        return 2
    share = None if options.tries is not None else 60 * options.minutes / len(chosen)
    times = dict.fromkeys(chosen, share)
    print((forecast if options.dry_run else total)(times), flush=True)
    if options.dry_run:
        return 0
    torch.set_num_threads(1)
    results: dict[str, list[tuple[int, str]]] = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        use_data(Path(folder) / "data", write_data(Path(folder) / "data"), patch)
        warm_up(Path(folder), everything=bool({"runs", *MUTATIONS} & set(chosen)))
        for name in chosen:
            end = time.monotonic() + 60 * options.minutes / len(chosen)
            seeds = itertools.takewhile(
                lambda seed, end=end: time.monotonic() < end if options.tries is None
                else seed < options.seed + options.tries, itertools.count(options.seed))
            results[name] = []
            for seed, why in attempts(name, seeds, Path(folder)):
                results[name].append((seed, why))
                if why and options.all:
                    print(f"{name} {seed}: {why}", flush=True)
            print(row(name, results[name]), file=sys.stderr, flush=True)
    print(table(results))
    return int(any(why for tries in results.values() for _, why in tries))


if __name__ == "__main__":
    sys.exit(main())
