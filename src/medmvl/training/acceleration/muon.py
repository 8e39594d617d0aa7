"""Muon for the matrices of linear layers, AdamW for all other weights.

Muon (Jordan et al., 2024) updates a matrix by its momentum with all singular values set to one, so that all directions change
at the same rate. torch implements it for matrices only; a model also has embeddings, norms, biases and convolutions. Updates are
scaled to the size of AdamW's (arXiv 2502.16982), so the same learning rates apply to both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from medmvl.errors import MissingExtraError, RecipeError

#: Key of the parameter groups that Muon updates.
_MARK = "muon"

#: Matrices of one shape are orthogonalized in stacks of at most this many numbers, which bounds the memory of a stack.
_STACK_NUMBERS = 2**22

#: Update over learning rate of AdamW, which Muon's updates are scaled to (arXiv 2502.16982, equation 4).
_ADAMW_RMS = 0.2

#: An older torch has none, which `require_muon` says; the module can be imported all the same.
_Muon: Any = getattr(torch.optim, "Muon", torch.optim.Optimizer)


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


class StackedMuon(_Muon):
    """torch's Muon, which takes the matrices of one shape together: the updates are the same numbers.

    A small model has dozens of small matrices, and a call for each of 15 products costs more than the products. Updates are scaled to
    the size of AdamW's.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the matrices that have a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for stack in _stacks([p for p in group["params"] if p.grad is not None]):
                self._update(stack, group)
        return loss

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape."""
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        momenta = [self._momentum(matrix) for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        moved = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        directions = _orthogonal(torch.stack([*moved]), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * _ADAMW_RMS * max(matrices[0].shape) ** 0.5
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, list(directions.to(matrices[0].dtype)), alpha=-rate)

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def _stacks(matrices: list[Tensor]) -> Iterator[list[Tensor]]:
    """Group matrices by shape, dtype and device, in stacks that are not too large."""
    groups: dict[Any, list[Tensor]] = defaultdict(list)
    for matrix in matrices:
        groups[matrix.shape, matrix.dtype, matrix.device].append(matrix)
    for alike in groups.values():
        size = max(1, _STACK_NUMBERS // max(1, alike[0].numel()))
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _orthogonal(stack: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Set the singular values of each matrix to about one, by Muon's Newton-Schulz iteration in bfloat16: (n, out, in) -> the same."""
    a, b, c = coefficients
    x = stack.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon and torch's AdamW as one optimizer with one set of groups and one state.

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
        self._steppers: list[torch.optim.Optimizer] = [StackedMuon(split[True])]
        if split[False]:
            self._steppers.append(torch.optim.AdamW(split[False], betas=betas))
        super().__init__([group for stepper in self._steppers for group in stepper.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Give both optimizers this one's groups and state, which are scheduled, saved and loaded."""
        for stepper in self._steppers:
            mark = isinstance(stepper, StackedMuon)
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
