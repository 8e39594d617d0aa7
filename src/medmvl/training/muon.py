"""Muon: the matrices of linear layers move by orthogonalised momentum, everything else by AdamW.

Muon (Jordan and others, 2024) replaces the gradient's momentum by the nearest matrix whose singular values are all one, so
that no direction waits because another is steeper. torch has it for matrices alone; a model also has embeddings, norms,
biases and convolutions. Steps are scaled to the size of AdamW's (arXiv 2502.16982), so a recipe's rates hold for both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from medmvl.errors import MissingExtraError, RecipeError

#: Marks the groups that Muon moves.
_MARK = "muon"


def require_muon() -> None:
    """Do nothing if this torch has Muon.

    Raises:
        MissingExtraError: if torch is older than 2.9.
    """
    if not hasattr(torch.optim, "Muon"):
        raise MissingExtraError(
            f"`optimizer: muon` needs torch 2.9 or later, and this is {torch.__version__}. Update torch, or use adamw."
        )


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights (out, in) of the linear layers that train, without the head that makes logits.

    The head and the embeddings have a row per token, which do not mix; they are left to AdamW, as Muon's authors do. So is
    what is not an `nn.Linear`: convolutions, the experts of a mixture in one tensor, `nn.MultiheadAttention`'s input.
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
    """torch's Muon and torch's AdamW behind one set of groups and one state.

    Args:
        groups: torch's parameter groups with `lr` and `weight_decay`; a group with both kinds of weights becomes two.
        matrices: the weights that Muon moves.
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
                "`optimizer: muon` moves the weights of linear layers, and none of them trains. Use adamw."
            )
        self._steppers: list[torch.optim.Optimizer] = [torch.optim.Muon(split[True], adjust_lr_fn="match_rms_adamw")]
        if split[False]:
            self._steppers.append(torch.optim.AdamW(split[False], betas=betas))
        super().__init__([group for stepper in self._steppers for group in stepper.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the two work on this optimiser's groups and state, which are what is scheduled, saved and loaded."""
        for stepper in self._steppers:
            mark = isinstance(stepper, torch.optim.Muon)
            stepper.param_groups = [group for group in self.param_groups if group[_MARK] == mark]
            stepper.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # `load_state_dict` puts other groups and another state in place
        self._share()

    def step(self, closure: Any = None) -> Any:
        """Move all parameters that have a gradient."""
        loss = closure() if closure is not None else None
        self._leave_idle_matrices()
        for stepper in self._steppers:
            stepper.step()
        return loss

    def _leave_idle_matrices(self) -> None:
        """Take the gradients of zero from matrices: a tower that saw no image in this step stays as it is.

        Muon's step has one size whatever the momentum's, so that such a tower would go on at full speed for hundreds of steps.
        """
        groups = (group["params"] for group in self.param_groups if group[_MARK])
        matrices = [p for params in groups for p in params if p.grad is not None]
        if not matrices:
            return
        norms = torch.stack([*torch._foreach_norm([p.grad for p in matrices])])
        for matrix, is_idle in zip(matrices, (norms == 0).tolist(), strict=True):
            if is_idle:
                matrix.grad = None
