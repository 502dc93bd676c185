"""Models: one architecture per file, found by its file name; the folder is the registry."""

import importlib
import pkgutil

from torch import nn

__all__ = ["available_models", "build_model", "model_class"]

MOST_LAYERS = 1000  # each may cost time and memory before its first tensor is created


def available_models() -> list[str]:
    """The file names in `model/`, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def model_class(name: str) -> type[nn.Module]:
    """Return the class of the file `name`; case, hyphens and underscores are ignored.

    Raises ValueError, listing the known names, for an unknown name.
    """
    files = {_key(stem): stem for stem in available_models()}
    if _key(name) not in files:
        raise ValueError(f"unknown model {name!r}; available: {', '.join(available_models())}")
    module = importlib.import_module(f"model.{files[_key(name)]}")
    return getattr(module, module.__all__[0])


def build_model(settings: dict, **sizes: int) -> nn.Module:
    """Build the model of a `[model]` table: `name` and that constructor's keywords.

    sizes: those that the data set decides (vocab_size=114, num_classes=10). Raises ValueError for
    an unknown name, a bad value or a keyword "...layers" above MOST_LAYERS, TypeError for an
    unknown keyword.
    """
    settings = dict(settings)
    for key, value in settings.items():
        if key.endswith("layers") and value > MOST_LAYERS:
            raise ValueError(f"{key} must be at most {MOST_LAYERS}, got {value}")
    return model_class(settings.pop("name"))(**sizes, **settings)


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
