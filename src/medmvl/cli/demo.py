"""`medmvl demo`: a web page to look and ask."""

from __future__ import annotations

from typing import Annotated

import typer

from medmvl.cli import options as o


def demo(
    model: o.ModelFolder,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 7860,
    template: o.Template = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
) -> None:
    """Open a web page: upload an image or a CT, look through it, ask."""
    from medmvl.serving.demo import run_demo

    def ready() -> None:
        typer.echo(f"Open http://{host}:{port} in a browser; stop with Ctrl-C.")

    run_demo(model, host=host, port=port, on_ready=ready, template=template, dtype=dtype, device=device)
