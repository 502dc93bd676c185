"""Models: one architecture per file, found by its file name; the folder is the registry."""

import importlib
import pkgutil

from torch import nn

__all__ = ["available_models", "build_model", "model_class"]


def available_models() -> list[str]:
    """The file names in `model/`, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def model_class(name: str) -> type[nn.Module]:
    """The one class of the file `name`, case, hyphens and underscores ignored.

    Raises ValueError, listing the known names, for another.
    """
    files = {_key(stem): stem for stem in available_models()}
    if _key(name) not in files:
        raise ValueError(f"unknown model {name!r}; available: {', '.join(available_models())}")
    module = importlib.import_module(f"model.{files[_key(name)]}")
    return getattr(module, module.__all__[0])


def build_model(settings: dict, **sizes: int) -> nn.Module:
    """Build the model of a `[model]` table: `name` and that constructor's keywords.

    sizes: what the data decides (vocab_size=114, num_classes=10). Raises ValueError for an unknown
    name or bad value, TypeError for an unknown keyword.
    """
    settings = dict(settings)
    return model_class(settings.pop("name"))(**sizes, **settings)


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
