"""Interface and registry of encoders.

An encoder has a *spec* (a small frozen config that knows sizes and widths without building anything) and a *module*
(pixels -> features). Configurations and recipes hold specs; the registry maps a name to its spec class.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from medmvl.errors import ModelError
from medmvl.models.grid import Grid
from medmvl.registry import Registry

ENCODERS: Registry[type[EncoderSpec]] = Registry("encoder")


class EncoderModule(nn.Module):
    """Pixels to features: (N, C, H, W) or (N, C, D, H, W) -> (N, tokens, hidden_size)."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode a batch of inputs of one size: (N, C, [D,] H, W) -> (N, tokens, hidden_size)."""
        raise NotImplementedError


class EncoderSpec(BaseModel):
    """Settings and sizes of an encoder; subclasses add their settings as fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: "image" encoders take (N, C, H, W), "volume" encoders (N, C, D, H, W).
    modality: ClassVar[Literal["image", "volume"]] = "image"

    name: str

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return 3

    @property
    def input_size(self) -> tuple[int, ...]:
        """The native input size, (H, W) or (D, H, W)."""
        raise NotImplementedError

    def grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return the token grid for an input of `size` (default: the native one)."""
        raise NotImplementedError

    def build(self) -> EncoderModule:
        """Return the module with fresh weights."""
        raise NotImplementedError

    @classmethod
    def spec_from_pretrained(cls, folder: str, **settings: Any) -> EncoderSpec:
        """Return the spec that the config of a local folder or hub name describes; reads no weights."""
        raise ModelError(f"The encoder {settings.get('name', cls.__name__)!r} cannot be started from {folder!r}.")

    @classmethod
    def from_pretrained(cls, folder: str, **settings: Any) -> tuple[EncoderSpec, EncoderModule]:
        """Return spec and module with the weights of a local folder or hub name."""
        raise ModelError(f"The encoder {settings.get('name', cls.__name__)!r} cannot be started from {folder!r}.")

    def pretrained_key(self, name: str) -> str | None:
        """Return this module's name for a tensor of the encoder's published weights; None for one that is not used."""
        raise ModelError(f"The encoder {self.name!r} has no published weights to take {name!r} from.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return self.model_dump(mode="json")


def encoder_spec(settings: dict[str, Any]) -> EncoderSpec:
    """Return the spec that `settings` (with its `name`) describe."""
    return ENCODERS[settings["name"]].model_validate(settings)
