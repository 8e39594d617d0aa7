"""Conversations: several turns about the same images and volumes, with keys and values kept between the turns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medmvl.data.read_options import ReadOptions
from medmvl.data.sample import Message, Sample
from medmvl.inference.decoding import Decoder, Row, RowOptions
from medmvl.inference.questions import question, visual_inputs
from medmvl.models.visual_inputs import PIXEL_KEYS
from medmvl.processing import MedMVLProcessor
from medmvl.processing.image2d import ImageLike
from medmvl.processing.volume3d import VolumeLike


class Chat:
    """A conversation. What was run for earlier turns is not run again, as long as it is kept in memory.

    Args:
        decoder: returns a decoder that knows the prefixes of earlier turns.
        encode: reads and prepares images and volumes.
        system: text of a system turn.

    Attributes:
        messages: the turns so far.
        last: the last answered row: its tokens, confidence, and how many prompt tokens were reused.
    """

    def __init__(
        self,
        processor: MedMVLProcessor,
        decoder: Callable[[], Decoder],
        encode: Callable[[Sequence[Any], Sequence[Any]], dict[str, Tensor]],
        system: str | None = None,
    ) -> None:
        self._processor, self._decoder, self._encode = processor, decoder, encode
        self.messages: list[Message] = [Message("system", system)] if system is not None else []
        self.last: Row | None = None
        self._pixels: dict[str, Tensor] = {}

    def ask(
        self, text: str, images: Sequence[ImageLike] = (), volumes: Sequence[VolumeLike] = (), **options: Any
    ) -> str:
        """Answer the next turn.

        Args:
            text: what the user says; placeholders for new images and volumes are put in front if it has none.
            images, volumes: new ones of this turn, paths or already read.
            options: `read` for paths, see `ReadOptions`; `stops`, texts that end the answer; and fields of `RowOptions`.
        """
        return "".join(self.stream(text, images, volumes, **options))

    def stream(
        self,
        text: str,
        images: Sequence[ImageLike] = (),
        volumes: Sequence[VolumeLike] = (),
        *,
        read: ReadOptions | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Generator[str, None, None]:
        """Answer the next turn piece by piece; arguments as for `ask`.

        Closing the iterator cancels the answer, and the conversation is as it was before the turn.
        """
        images, volumes = visual_inputs("images", images, read), visual_inputs("volumes", volumes, read)
        turn = question(text, len(images), len(volumes)).messages[0]
        pixels = dict(self._pixels)
        for key, values in self._encode(images, volumes).items():
            pixels[key] = torch.cat([pixels[key], values]) if key in pixels else values
        counts = {f"{name}s": len(pixels.get(key, ())) for name, key in PIXEL_KEYS.items()}
        messages = (*self.messages, turn)
        ids, _ = self._processor.encode_text(Sample("(chat)", messages), train=False, **counts)
        row = Row({"input_ids": torch.tensor(ids), **pixels}, RowOptions(**{"keep": True, **options}))
        decoder = self._decoder()
        yield from decoder.stream(row)
        self._pixels, self.last = pixels, row
        self.messages = [*messages, Message("assistant", decoder.text(row).final(row.token_ids))]
