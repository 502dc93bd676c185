"""Optimizer classes of installed libraries: lookup by "package:Class", their required arguments,
and messages on why a class cannot be used."""

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from torch.optim import Optimizer

AROUND = ("optimizer", "base_optimizer")  # argument names by which a class wraps another optimizer
OURS = __name__.split(".")[0]


def library_class(package: str, name: str) -> type[Optimizer]:
    """Return the optimizer class `name` of an installed package ("torch" is torch.optim).

    Raises ValueError for a package that is not installed, an unknown class, and a class that wraps
    another optimizer, which a config cannot pass.
    """
    cls = getattr(_module(package, name), name, None)
    if not (inspect.isclass(cls) and issubclass(cls, Optimizer)):
        raise ValueError(f"{package} has no optimizer class {name!r}")
    if set(required(cls)) & set(AROUND):
        raise ValueError(f"{name} wraps another optimizer, which a config cannot pass to it: use a "
                         "wrapper of this package, such as sam, asam, lookahead or qk_clip")
    return cls


def library_classes(package: str) -> list[str]:
    """Return the names of all optimizer classes of an installed package. Raises ValueError for a
    package that is not installed or has none."""
    names = sorted(name for name, cls in vars(_module(package, "...")).items()
                   if inspect.isclass(cls) and issubclass(cls, Optimizer) and cls is not Optimizer)
    if not names:
        raise ValueError(f"{package} has no optimizer classes")
    return names


def required(cls: type[Optimizer]) -> list[str]:
    """Return the names of the arguments without a default, except `params` and `model`."""
    return [p.name for p in inspect.signature(cls).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            and p.name not in ("params", "model")]


def wants_use_muon(cls: type[Optimizer]) -> bool:
    """Whether a library's class needs groups with the key `use_muon`, as in pytorch_optimizer: its
    module's source contains that name."""
    if cls.__module__.startswith((f"{OURS}.", "torch.")):
        return False
    try:
        return "use_muon" in inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError):  # a module without source
        return False


def wants_graph(cls: type[Optimizer]) -> bool:
    """Whether the class differentiates the gradients, as pytorch_optimizer's AdaHessian and SophiaH
    do: its docstring contains `create_graph=True`."""
    return "create_graph=True" in (cls.__doc__ or "")


def refusal(cls: type[Optimizer], error: Exception) -> str:
    """Return a one-line explanation of an exception raised by the class's step."""
    if isinstance(error, NotImplementedError) and not str(error):
        return "it does not implement step(), but updates the weights through methods of its own"
    if cls.__module__.startswith((f"{OURS}.", "torch.")) or is_message(error):
        return reason(error)
    about = (cls.__doc__ or "").strip().split("\n")[0].rstrip(".")
    return f"{reason(error)}; its documentation says: {about}"


def reason(error: Exception) -> str:
    """Return an exception as one line, with type, file and line if it is not a user message."""
    text = " ".join(str(error).split())
    if is_message(error):
        return text
    places = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {text}{place}"


def is_message(error: Exception) -> bool:
    """Whether an exception is a message for users: a ValueError, ImportError or NotImplementedError
    with a text."""
    kinds = ValueError | ImportError | NotImplementedError
    return isinstance(error, kinds) and bool(str(error).strip())


def _module(package: str, name: str) -> ModuleType:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package):
        raise ValueError(f"{package!r} is not a package name; write package:Class")
    _require_installed(package.split(".")[0])
    try:
        return importlib.import_module("torch.optim" if package == "torch" else package)
    except ImportError as error:
        raise ValueError(f"optimizer {package}:{name}: no package {package} ({error})") from error


def _require_installed(package: str) -> None:
    """Raise ValueError for a standard-library module (importing "antigravity" opens a browser), and
    for a package in the working directory or in this project's checkout: a config must not be able
    to run code from a folder of results."""
    if package in sys.stdlib_module_names:
        raise ValueError(f"{package} has no optimizer classes: it is in Python's standard library")
    home = Path(__file__).parents[2]  # the checkout, or site-packages
    forbidden = {Path.cwd(), home} if (home / "pyproject.toml").exists() else {Path.cwd()}
    spec = importlib.util.find_spec(package)
    files = [spec.origin] if spec and spec.origin else []
    places = (spec and spec.submodule_search_locations) or files
    if any(Path(place).parent.resolve() in forbidden for place in places):
        raise ValueError(f"{package} is not an installed package: package:Class cannot name "
                         "code in the working directory")
