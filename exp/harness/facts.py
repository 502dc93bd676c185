"""Facts for run.json: command, code, machine, data, and the parameter groups as BUILT."""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from exp.harness.build import Built
from exp.harness.distributed import size, torchrun_id
from exp.harness.folder import read_object
from exp.harness.recipes import ROOT, SOURCES, recipes
from optimizer.parts.distributed.sharded import Sharded

PACKAGES = ("torch", "torchvision", "numpy", "transformers", "tokenizers", "pytorch_optimizer")


def run_facts(built: Built) -> dict:
    """Commit, RECIPE numbers, versions, device, threads, checksums of the data, and the parameter
    groups as the optimizer holds them."""
    model, optimizer = built.model, built.optimizer
    unwrapped = optimizer.base if isinstance(optimizer, Sharded) else optimizer
    commit, uncommitted = code_version()
    return {
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "commit": commit,
        "uncommitted_changes": uncommitted,
        "recipes": recipes(built.settings, built.task),
        "sources": loaded_sources(),
        "python": platform.python_version(),
        "versions": {name: number for name in PACKAGES if (number := version_of(name))},
        "platform": platform.platform(),
        "device": device_name(built.device),
        "threads": torch.get_num_threads(),
        "processes": size(), "torchrun": torchrun_id(),
        "data": getattr(built.data, "digest", {}),
        "optimizer": type(unwrapped).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameter_groups": parameter_groups(model, optimizer),
    }


def is_of_this_torchrun(folder: Path) -> bool:
    """Whether this torchrun command began the run in the folder, before it restarted its processes.
    """
    begun = read_object(folder / "run.json").get("torchrun")
    return begun is not None and begun == torchrun_id()


def code_version() -> tuple[str | None, bool]:
    """Return the commit, and whether an imported file of this project differs from it: changed,
    untracked, ignored, or a link. Without git both come from the environment variable ARS_COMMIT,
    in which a final "+" stands for changes."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        given = os.environ.get("ARS_COMMIT", "")
        return given.removesuffix("+") or None, given.endswith("+")
    files = loaded_sources()
    # Not by git status, which skips files marked skip-worktree and does not follow links.
    kept = _git("ls-tree", "-r", "-z", "HEAD", "--", *files)
    now = _git("hash-object", "--", *files)
    if kept is None or now is None:
        return commit, True
    names = [entry.split(" ")[-1] for entry in kept.split("\0") if entry]  # "digest\tpath"
    return commit, sorted(names) != sorted(map("\t".join, zip(now.split(), files, strict=True)))


def short_commit() -> str:
    """First seven digits of the commit, with "+" if the imported code differs from it; "unknown"
    without a commit."""
    commit, uncommitted = code_version()
    return f"{commit[:7]}{'+' * uncommitted}" if commit else "unknown"


def loaded_sources() -> dict[str, str]:
    """Path -> hash of every file of this project that the process has imported: the code that the
    run depends on."""
    folders = tuple(f"{ROOT / name}{os.sep}" for name in SOURCES)
    files = {os.path.normpath(file) for module in list(sys.modules.values())
             if (file := getattr(module, "__file__", None))}
    ours = [Path(file) for file in sorted(files) if file.startswith(folders)]
    return {file.relative_to(ROOT).as_posix(): source_hash(file) for file in ours}


def source_hash(file: Path) -> str:
    """The first 12 hex digits of the file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def parameter_groups(model: nn.Module, optimizer: Optimizer) -> list[dict]:
    """The optimizer's groups: every setting, the number of elements, and name -> shape."""
    names = {id(p): name for name, p in model.named_parameters()}
    shards = getattr(optimizer, "shards", {})  # parameter -> its shard here
    return [{
        **{key: _plain(value) for key, value in group.items()
           if key not in ("params", "scalars")},
        "elements": sum(p.numel() for p in group["params"]),
        "params": {names[id(shards.get(p, p))]: list(p.shape) for p in group["params"]},
    } for group in optimizer.param_groups]


def _plain(value: Any) -> Any:
    if torch.is_tensor(value):
        return value.tolist()
    plain = bool | int | float | str | list | tuple | None
    return value if isinstance(value, plain) else str(value)


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).stem


@cache
def version_of(package: str) -> str | None:
    """Installed version of a distribution, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: torch.device) -> str:
    """Model of the GPU; or model, cores and instruction set of the CPU, because clouds sell several
    generations under one name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = _cpuinfo("model name") or platform.processor()
    return ", ".join(filter(None, [f"CPU: {model}", f"{os.cpu_count()} cores", instruction_set()]))


def instruction_set() -> str:
    """The CPU's widest instructions for matrix products, as Linux names them; "" if unknown."""
    flags = _cpuinfo("flags").split()
    return next((name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags),
                "")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware; other CPUs emulate it."""
    return device.type == "cuda" or "bf16" in instruction_set()


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
