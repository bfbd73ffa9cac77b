"""AdamW for models with tables of embeddings, of whose rows a step uses a few hundred in tens of thousands.

A table's dense gradient is made anew in every step, filled with zeros in fresh memory, measured and scaled for
clipping, and thrown away: more work than all that AdamW itself does. Here a table has a sparse gradient, which is
clipped as it is and laid into a buffer of zeros that stays. The update is that of ``torch.optim.AdamW``, of all rows:
one without a gradient still moves by its momentum and decays.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def make_gradients_sparse(model: nn.Module) -> None:
    """Lets every table of ``model`` have a sparse gradient."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = True


class TableAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW``, fused, that clips gradients itself and takes sparse ones; its state is the same."""

    # PyTorch shields these from its compiler, which it loads to do so: 1.0 s of the processor and 72 MB in every trial.
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = inspect.unwrap(torch.optim.AdamW.step)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)

    def __init__(self, parameters: Iterable[dict[str, Any]], learning_rate: float, max_grad_norm: float) -> None:
        super().__init__(parameters, lr=learning_rate, fused=True)
        self._max_grad_norm = max_grad_norm
        self._dense: dict[nn.Parameter, torch.Tensor] = {}  # zeros between steps

    @torch.no_grad()
    def clip_and_step(self) -> None:
        """One step with gradients clipped to ``max_grad_norm``, L2 over all of them; none is left behind."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        tables = {p: p.grad.coalesce() for p in parameters if p.grad.is_sparse}
        gradients = [tables[p].values() if p in tables else p.grad for p in parameters]
        norm = nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (self._max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        for table, gradient in tables.items():
            if table not in self._dense:
                self._dense[table] = torch.zeros_like(table)
            table.grad = self._dense[table].index_copy_(0, gradient.indices()[0], gradient.values())
        self.step()
        for table, gradient in tables.items():
            self._dense[table].index_fill_(0, gradient.indices()[0], 0.0)
        self.zero_grad(set_to_none=True)
