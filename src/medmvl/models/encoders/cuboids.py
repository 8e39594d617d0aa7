"""What the 3D vision transformers share: cuboid patches and the choice of a layer."""

from __future__ import annotations

from torch import Tensor

from medmvl.errors import ModelError


def cuboids(volumes: Tensor, patch: tuple[int, int, int], order: str) -> Tensor:
    """Cut volumes into patches, flattened.

    Args:
        volumes: (N, C, D, H, W).
        patch: (d, h, w) in voxels.
        order: the axes inside a patch, slowest first: a permutation of "dhwc". It must be the one of the weights.

    Returns:
        (N, patches, d*h*w*C), patches in (D, H, W) order.
    """
    depth, height, width = patch
    # (N, C, D/d, d, H/h, h, W/w, w)
    split = volumes.unflatten(4, (-1, width)).unflatten(3, (-1, height)).unflatten(2, (-1, depth))
    axis = {"c": 1, "d": 3, "h": 5, "w": 7}
    return split.permute(0, 2, 4, 6, *(axis[letter] for letter in order)).flatten(4).flatten(1, 3)


def layers_used(select_layer: int, layers: int, who: str) -> int:
    """Return how many layers must run for `select_layer`, an index into the layers' outputs (-1: the last one).

    Raises:
        ModelError: if there is no such layer.
    """
    used = select_layer + 1 if select_layer >= 0 else layers + 1 + select_layer
    if not 0 < used <= layers:
        raise ModelError(
            f"select_layer {select_layer} is not one of the {layers} layers of {who!r} (0..{layers - 1}, or -1..-{layers})."
        )
    return used
