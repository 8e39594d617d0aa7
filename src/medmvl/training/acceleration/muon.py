"""Muon for the matrices of linear layers, AdamW for all other weights.

Muon (Jordan et al., 2024) updates a matrix by its momentum with all singular values set to one, so that all directions change
at the same rate. torch implements it for matrices only; a model also has embeddings, norms, biases and convolutions. Updates are
scaled to the size of AdamW's (arXiv 2502.16982), so the same learning rates apply to both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from medmvl.errors import MissingExtraError, RecipeError

#: Key of the parameter groups that Muon updates.
_MARK = "muon"


def require_muon() -> None:
    """Raise if this torch has no Muon.

    Raises:
        MissingExtraError: if torch is older than 2.9.
    """
    if not hasattr(torch.optim, "Muon"):
        raise MissingExtraError(
            f"`optimizer: muon` needs torch 2.9 or later, and this is {torch.__version__}. Update torch, or use adamw."
        )


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights (out, in) of the linear layers that train, without the head that makes logits.

    The head and the embeddings, whose rows belong to single tokens, are left to AdamW, as Muon's authors do. So are weights outside
    of `nn.Linear`: convolutions, experts of a mixture in one tensor, `nn.MultiheadAttention`'s input projection.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if isinstance(model, PreTrainedModel) and (head := model.get_output_embeddings()) is not None:
        tables.add(id(head.weight))
    chosen: dict[int, nn.Parameter] = {}
    for module in model.modules():
        weight = module.weight if isinstance(module, nn.Linear) else None
        if isinstance(weight, nn.Parameter) and weight.requires_grad and id(weight) not in tables:
            chosen[id(weight)] = weight
    return list(chosen.values())


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW as one optimizer with one set of groups and one state.

    Args:
        groups: torch's parameter groups with `lr` and `weight_decay`; a group with both kinds of weights becomes two.
        matrices: the weights that Muon updates.
        betas: AdamW's decay rates.

    Raises:
        MissingExtraError: if torch is older than 2.9.
        RecipeError: if there is no matrix.
    """

    def __init__(
        self, groups: list[dict[str, Any]], matrices: list[nn.Parameter], betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        require_muon()
        by_muon = {id(weight) for weight in matrices}
        split = {
            mark: [
                group | {"params": chosen, _MARK: mark}
                for group in groups
                if (chosen := [p for p in group["params"] if (id(p) in by_muon) == mark])
            ]
            for mark in (True, False)
        }
        if not split[True]:
            raise RecipeError(
                "`optimizer: muon` updates the weights of linear layers, and none of them trains. Use adamw."
            )
        self._steppers: list[torch.optim.Optimizer] = [torch.optim.Muon(split[True], adjust_lr_fn="match_rms_adamw")]
        if split[False]:
            self._steppers.append(torch.optim.AdamW(split[False], betas=betas))
        super().__init__([group for stepper in self._steppers for group in stepper.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Give both optimizers this one's groups and state, which are scheduled, saved and loaded."""
        for stepper in self._steppers:
            mark = isinstance(stepper, torch.optim.Muon)
            stepper.param_groups = [group for group in self.param_groups if group[_MARK] == mark]
            stepper.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # `load_state_dict` puts other groups and another state in place
        self._share()

    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = closure() if closure is not None else None
        self._leave_idle_matrices()
        for stepper in self._steppers:
            stepper.step()
        return loss

    def _leave_idle_matrices(self) -> None:
        """Remove gradients of zero from matrices: a tower without images in this step does not change.

        The size of Muon's update does not depend on that of the momentum, so such a tower would keep changing for hundreds of steps.
        """
        groups = (group["params"] for group in self.param_groups if group[_MARK])
        matrices = [p for params in groups for p in params if p.grad is not None]
        if not matrices:
            return
        norms = torch.stack([*torch._foreach_norm([p.grad for p in matrices])])
        for matrix, is_idle in zip(matrices, (norms == 0).tolist(), strict=True):
            if is_idle:
                matrix.grad = None
