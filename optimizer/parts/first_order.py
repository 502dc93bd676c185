"""The base of our optimizers: one gradient evaluation a step, exact state_dict, checked groups."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer


class FirstOrder(Optimizer):
    """Subclasses give `update_group(params, group)`, in place, for parameters with a gradient."""

    def update_group(self, params: list[Tensor], group: dict) -> None:
        """Update in place the tensors `params` of `group`, all with a dense gradient."""
        raise TypeError(f"{type(self).__name__} defines no update_group")

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step; the loss of the closure's first call, None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self.update()
        return loss

    def update(self) -> None:
        """Apply the gradients that stand in `p.grad`; parameters without one are left alone."""
        for group in self.param_groups:
            params = self.with_gradient(group)
            if params:
                self.update_group(params, group)

    @staticmethod
    def with_gradient(group: dict) -> list[Tensor]:
        """The parameters of `group` that have a gradient. Raises ValueError for a sparse or a
        complex one."""
        params = [p for p in group["params"] if p.grad is not None]
        if any(p.grad.is_sparse for p in params):
            raise ValueError("sparse gradients are not supported: use sparse=False")
        if any(p.is_complex() for p in params):
            raise ValueError("complex parameters are not supported")
        return params

    def buffers(self, params: list[Tensor], name: str) -> list[Tensor]:
        """The state tensor `name` of each parameter, zeros on first sight.

        Kept in float32 for half-precision parameters.
        """
        for p in params:
            if name not in self.state[p]:
                dtype = p.dtype if p.dtype == torch.float64 else torch.float32
                self.state[p][name] = torch.zeros_like(p, dtype=dtype)
        return [self.state[p][name] for p in params]

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore exactly what `state_dict` gave, as copies: also state wider than its parameter.

        (torch rounds such state to the parameter's dtype, and else keeps the very tensors given.)
        """
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, p in zip(indices, params, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if torch.is_tensor(value):
                    # torch knows where its AdamW wants the step count.
                    device = self.state[p][key].device if key == "step" else p.device
                    self.state[p][key] = value.to(device, copy=True)
