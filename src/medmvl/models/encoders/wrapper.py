"""Base class of encoders that run a 2D encoder over several parts of their input."""

from __future__ import annotations

from typing import Any, Self

from pydantic import field_validator

from medmvl.errors import ModelError
from medmvl.models.encoders.encoder import ENCODERS, EncoderModule, EncoderSpec, encoder_spec


class WrapperSpec(EncoderSpec):
    """Settings of an encoder around a 2D encoder; subclasses turn their input into images.

    Attributes:
        encoder: settings of the 2D encoder, with its `name`.
    """

    encoder: dict[str, Any]

    @field_validator("encoder")
    @classmethod
    def _is_2d(cls, value: dict[str, Any]) -> dict[str, Any]:
        if encoder_spec(value).modality != "image":
            raise ModelError(f"slicewise and tiled need a 2D encoder, got {value['name']!r}.")
        return value

    @property
    def inner(self) -> EncoderSpec:
        """The spec of the 2D encoder."""
        return encoder_spec(self.encoder)

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return self.inner.hidden_size

    @property
    def channels(self) -> int:
        """Number of input channels of the 2D encoder."""
        return self.inner.channels

    def wrap(self, encoder: EncoderModule) -> EncoderModule:
        """Return this encoder around the 2D encoder's module."""
        raise NotImplementedError

    def build(self) -> EncoderModule:
        """Return the module with fresh weights."""
        return self.wrap(self.inner.build())

    def pretrained_key(self, name: str) -> str | None:
        """Return the 2D encoder's name of a pretrained tensor, one level down."""
        inner = self.inner.pretrained_key(name)
        return None if inner is None else f"encoder.{inner}"

    @classmethod
    def spec_from_pretrained(cls, folder: str, **settings: Any) -> Self:
        """Describe the 2D encoder by a folder; `encoder` needs only its name and selections."""
        inner = dict(settings.pop("encoder"))
        return cls(encoder=ENCODERS[inner["name"]].spec_from_pretrained(folder, **inner).to_dict(), **settings)

    @classmethod
    def from_pretrained(cls, folder: str, **settings: Any) -> tuple[EncoderSpec, EncoderModule]:
        """Start the 2D encoder from a folder."""
        inner = dict(settings["encoder"])
        spec = cls.spec_from_pretrained(folder, **settings)
        return spec, spec.wrap(ENCODERS[inner["name"]].from_pretrained(folder, **inner)[1])
