"""8-bit AdamW, Dettmers et al. 2021, arXiv 2110.02861: AdamW with one byte per moment.

The kernels are those of bitsandbytes (0.50 or later supports the CPU): `pip install
'bitsandbytes>=0.50'` or this project's extra, `uv sync --extra 8bit`. The library is imported when
an optimizer is created.
"""

import importlib
from collections.abc import Iterable
from types import ModuleType

import torch

from .parts import checks
from .parts.base import inner_step
from .parts.first_order import FirstOrder

__all__ = ["AdamW8bit"]

SEARCH_SPACE = {
    "lr": (1e-5, 1e-1, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "betas": [[0.9, 0.95], [0.9, 0.98], [0.9, 0.999]],
}
COST = {"gradient_evaluations": 1, "state_tensors": 2}  # of one byte per entry
TESTED_AGAINST = "torch.optim.AdamW"
REQUIRES = "bitsandbytes"


class AdamW8bit(FirstOrder):
    """torch's AdamW with both moments quantized in blocks of 256 entries after every step.

        m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
        W <- (1 - lr weight_decay) W - lr m_hat / (sqrt(v_hat) + eps)
        m, v <- the nearest of 256 values of a dynamic code, times the block's largest entry

    Tensors with fewer than min_8bit_size entries keep float32 moments, which is plain AdamW. The
    update of float64 parameters is computed in float32 and added in float64.

    Cost: 1 gradient evaluation per step, 2 state tensors per parameter, of one byte per entry.
    Raises ImportError if bitsandbytes is not installed, ValueError for an invalid argument, a
    sparse gradient or a complex parameter.
    """

    def __init__(self, params: Iterable, lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.01, min_8bit_size: int = 4096) -> None:
        checks.non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        checks.pair_of_fractions(betas=betas)
        checks.at_least(0, min_8bit_size=min_8bit_size)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps,
                                  "weight_decay": weight_decay})
        self.min_8bit_size = min_8bit_size
        self._build_kernels()

    def _build_kernels(self) -> None:
        self.kernels = bitsandbytes().optim.AdamW8bit(
            [p for group in self.param_groups for p in group["params"]],
            min_8bit_size=self.min_8bit_size)
        self._share()

    def has_own_dtype(self, key: str) -> bool:
        """Return True for every entry: bitsandbytes stores bytes and float32."""
        return True

    def __getstate__(self) -> dict:
        """Return all attributes except the kernels, which a copy rebuilds."""
        return {key: value for key, value in super().__getstate__().items() if key != "kernels"}

    def __setstate__(self, state: dict) -> None:
        """Restore all attributes, or only groups and state, as torch's loading does."""
        super().__setstate__(state)
        if "kernels" not in self.__dict__:
            self._build_kernels()

    def _share(self) -> None:
        self.kernels.param_groups, self.kernels.state = self.param_groups, self.state

    def update(self) -> None:
        """Apply the update of the class docstring in place, with bitsandbytes' kernels."""
        params = [p for group in self.param_groups for p in self.with_gradient(group)]
        doubles = [p for p in params if p.dtype == torch.float64]
        before = [p.clone() for p in doubles]
        self._share()  # inside Joint, this optimizer has Joint's state
        torch.compiler.disable(inner_step)(self.kernels)
        for p, old in zip(doubles, before, strict=True):  # the kernels rounded these to float32
            p.copy_(old + (p - old.float()))

    def after_loading(self) -> None:
        """Share the loaded groups and state with the kernels again."""
        super().after_loading()
        self._share()


def bitsandbytes() -> ModuleType:
    """Import and return the library. Raises ImportError with install commands if it is missing."""
    try:
        return importlib.import_module(REQUIRES)
    except ImportError as error:
        raise ImportError("adamw_8bit needs bitsandbytes: pip install 'bitsandbytes>=0.50', or "
                          f"uv sync --extra 8bit ({error})") from error
