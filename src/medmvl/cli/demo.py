"""`medmvl demo`: a web page to look at images and volumes and to ask about them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmvl.cli import options as o
from medmvl.cli.loading import announce_loading


def demo(
    model: o.ModelFolder,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: a free one.", min=0, max=65535)] = 7860,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name under which browsers reach the page (a proxy's); repeatable."),
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File whose lines are passwords, any of which opens the page.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Another checkpoint folder, to compare its answers with the first one's.")
    ] = None,
    preferences: Annotated[
        Path | None, typer.Option(help="JSON Lines file to which preferences between the two models are added.")
    ] = None,
    abstain_below: o.AbstainBelow = None,
    template: o.Template = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
) -> None:
    """Serve a web page: open an image or a CT, look at it, ask questions."""
    announce_loading(model, *([compare] if compare else []))
    from medmvl.files import existing_folder
    from medmvl.serving.page.run import run_page
    from medmvl.serving.page.settings import PageSettings, read_passwords

    def ready(address: str, password: str | None) -> None:
        typer.echo(f"Open {address} in a browser; stop with Ctrl-C.")
        if password is not None:
            typer.echo(f"Other machines can reach the page, without encryption. Its password is {password}", err=True)

    settings = PageSettings(
        read_passwords(password_file) if password_file else (),
        preferences=preferences,
        abstain_below=o.confidence(abstain_below),
    )
    run_page(
        model,
        compare=existing_folder(compare, "checkpoint folder") if compare else None,
        host=host,
        port=port,
        allowed_hosts=allowed_host or (),
        settings=settings,
        on_ready=ready,
        template=template,
        dtype=dtype,
        device=device,
    )
