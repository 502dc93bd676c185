"""Optimizer classes of installed libraries: found by "package:Class", what they want, and why one
cannot be used, in words."""

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from torch.optim import Optimizer

AROUND = ("optimizer", "base_optimizer")  # arguments by which a class goes around another
OURS = __name__.split(".")[0]


def library_class(package: str, name: str) -> type[Optimizer]:
    """The optimizer class `name` of an installed package ("torch" is torch.optim).

    Raises ValueError for a package that is not installed, and for a class that it does not have or
    that is of no use to a table of settings.
    """
    cls = getattr(_module(package, name), name, None)
    if not (inspect.isclass(cls) and issubclass(cls, Optimizer)):
        raise ValueError(f"{package} has no optimizer class {name!r}")
    if set(required(cls)) & set(AROUND):
        raise ValueError(f"{name} goes around another optimizer, which code has to give it; tables "
                         "can name ours: asam, gsam, lookahead, looksam, qk_clip, sam")
    return cls


def library_classes(package: str) -> list[str]:
    """The names of all optimizer classes of an installed package. Raises ValueError for a package
    that is not installed or has none."""
    names = sorted(name for name, cls in vars(_module(package, "...")).items()
                   if inspect.isclass(cls) and issubclass(cls, Optimizer) and cls is not Optimizer)
    if not names:
        raise ValueError(f"{package} has no optimizer classes")
    return names


def required(cls: type[Optimizer]) -> list[str]:
    """The names of the arguments that have no default, without `params` and `model`."""
    return [p.name for p in inspect.signature(cls).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            and p.name not in ("params", "model")]


def wants_use_muon(cls: type[Optimizer]) -> bool:
    """Whether a library's class wants groups that say `use_muon`, as pytorch_optimizer's do."""
    if cls.__module__.startswith((f"{OURS}.", "torch.")):
        return False
    try:
        return "use_muon" in inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError):  # a module without source
        return False


def wants_graph(cls: type[Optimizer]) -> bool:
    """Whether the class differentiates the gradients, as pytorch_optimizer's AdaHessian and SophiaH
    do: it asks for `create_graph=True` in its documentation."""
    return "create_graph=True" in (cls.__doc__ or "")


def refusal(cls: type[Optimizer], error: Exception) -> str:
    """One line on an exception of the class's step."""
    if isinstance(error, NotImplementedError) and not str(error):
        return "it has no step() but updates the weights by calls of its own"
    if cls.__module__.startswith((f"{OURS}.", "torch.")) or is_message(error):
        return reason(error)
    about = (cls.__doc__ or "").strip().split("\n")[0].rstrip(".")
    return f"{reason(error)}; its documentation says: {about}"


def reason(error: Exception) -> str:
    """One line of an exception; one that is no message for users, with its type and place."""
    text = " ".join(str(error).split())
    if is_message(error):
        return text
    places = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {text}{place}"


def is_message(error: Exception) -> bool:
    """Whether an exception was raised to be read by a user."""
    kinds = ValueError | ImportError | NotImplementedError
    return isinstance(error, kinds) and bool(str(error).strip())


def _module(package: str, name: str) -> ModuleType:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package):
        raise ValueError(f"{package!r} is no package name; write package:Class")
    _require_installed(package.split(".")[0])
    try:
        return importlib.import_module("torch.optim" if package == "torch" else package)
    except ImportError as error:
        raise ValueError(f"optimizer {package}:{name}: no package {package} ({error})") from error


def _require_installed(package: str) -> None:
    """Raise ValueError for a module of Python's library, which holds no optimizer ("antigravity"
    opens a browser), and for a package of the working directory or of this project's checkout: a
    config must not be able to run what some folder of results holds."""
    if package in sys.stdlib_module_names:
        raise ValueError(f"{package} has no optimizer classes: it is a part of Python")
    home = Path(__file__).parents[2]  # the checkout, or site-packages
    forbidden = {Path.cwd(), home} if (home / "pyproject.toml").exists() else {Path.cwd()}
    spec = importlib.util.find_spec(package)
    files = [spec.origin] if spec and spec.origin else []
    places = (spec and spec.submodule_search_locations) or files
    if any(Path(place).parent.resolve() in forbidden for place in places):
        raise ValueError(f"{package} is not an installed package: package:Class names no code of "
                         "the working directory")
