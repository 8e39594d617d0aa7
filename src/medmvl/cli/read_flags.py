"""Flags for reading images and volumes, shared by all commands that read them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_type_hints

import typer

from medmvl.data.read_options import ReadOptions

#: Name of a read option -> its flag on the command line.
_FLAGS: dict[str, Any] = {
    "units": Annotated[Literal["HU", "arbitrary"] | None, typer.Option(help="Units, where files do not say.")],
    "series": Annotated[
        str | None, typer.Option(help="DICOM series of a folder: UID or its end, largest, thinnest, axial ...")
    ],
    "gaps": Annotated[Literal["refuse", "fill", "keep"] | None, typer.Option(help="What to do about missing slices.")],
    "spacing": Annotated[str | None, typer.Option(metavar="Z,Y,X", help="Spacing in mm, where files have none.")],
    "orientation": Annotated[str | None, typer.Option(help="Sides of the axes of array or NIfTI files, such as SPL.")],
    "slope": Annotated[float | None, typer.Option(help="Rescale slope to HU that NIfTI files lack.")],
    "intercept": Annotated[float | None, typer.Option(help="Rescale intercept to HU that NIfTI files lack.")],
    "already_rescaled": Annotated[
        bool | None, typer.Option(help="Whether values that look rescaled to HU already are.")
    ],
    "frame": Annotated[int | None, typer.Option(help="Frame of multi-frame images, from 0.", min=0)],
}


def with_read_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flags of `ReadOptions` to a command, whose parameter `reading` receives the checked options."""
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        values = {name: arguments.pop(name) for name in _FLAGS}
        command(**arguments, reading=ReadOptions.parse(values, "The command line"))

    own = [p.replace(annotation=hints[n]) for n, p in signature.parameters.items() if n != "reading"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    flags = [inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in _FLAGS.items()]
    wrapped.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in [*own, *flags]}
    return wrapped
