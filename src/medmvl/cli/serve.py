"""`medmvl serve`: an OpenAI-compatible HTTP server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from medmvl.cli import options as o
from medmvl.cli.loading import announce_loading


def serve(
    model: o.ModelFolder,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: a free one.", min=0, max=65535)] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Name of the model for clients; default: that of the folder.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with a line `id: key` for each client.")] = None,
    without_key: Annotated[bool, typer.Option(help="Listen on --host without asking for a key.")] = False,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Another name in the Host header (a proxy's); repeatable.")
    ] = None,
    media_root: Annotated[Path | None, typer.Option(help="Folder below which file:// paths are read.")] = None,
    allow_url_host: Annotated[
        list[str] | None, typer.Option(help="Host from which URLs are fetched; repeatable. Default: none.")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(help="JSON Lines file with a line per request, without content.")
    ] = None,
    audit_days: Annotated[int, typer.Option(help="Daily audit files that are kept.", min=1)] = 190,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=NUMBER", help="A limit, such as waiting=64; see docs/serving.md.")
    ] = None,
    readers: Annotated[int, typer.Option(help="Processes that read uploads.", min=1, max=64)] = 2,
    page: Annotated[
        bool, typer.Option("--page", help="Serve the web page of `medmvl demo` at /; an API key opens it.")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate for https; with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="vLLM server that runs the LLM, such as http://127.0.0.1:8001/v1; see docs/serving.md."
        ),
    ] = None,
    abstain_below: o.AbstainBelow = None,
    template: o.Template = None,
    dtype: o.Dtype = "auto",
    quantize: o.Quantize = None,
    device: o.Device = None,
) -> None:
    """Serve a model to OpenAI's clients: questions about images and volumes over HTTP."""
    announce_loading(model)
    from medmvl.errors import RecipeError
    from medmvl.files import existing, existing_file
    from medmvl.serving.model_names import model_names
    from medmvl.serving.server.run import run_server
    from medmvl.serving.server.settings import ServerSettings, limits_from, read_keys

    if (tls_cert is None) != (tls_key is None):
        raise RecipeError("--tls-cert and --tls-key belong together. Give both, or neither.")
    if backend is not None and quantize is not None:
        raise RecipeError(
            "--quantize is for an LLM that runs here. Quantize it in the backend, or leave out --backend."
        )
    tls = None
    if tls_cert is not None and tls_key is not None:
        tls = existing_file(tls_cert, "certificate"), existing_file(tls_key, "key")
    settings = ServerSettings(
        name=name or model_names([model])[0],
        host=host,
        port=port,
        keys=read_keys(api_key_file) if api_key_file else {},
        without_key=without_key,
        allowed_hosts=tuple(allowed_host or ()),
        media_root=existing(media_root, "media root") if media_root else None,
        url_hosts=tuple(allow_url_host or ()),
        audit=audit,
        audit_days=audit_days,
        readers=readers,
        tls=tls,
        page=page,
        backend=backend,
        backend_key=os.environ.get("MEDMVL_BACKEND_KEY"),
        abstain_below=o.confidence(abstain_below),
    )

    def ready(address: str) -> None:
        typer.echo(f"Serving {settings.name} at {address}/v1; stop with Ctrl-C.")

    loading = {"template": template, "dtype": dtype, "device": device, "quantize": quantize}
    run_server(model, settings, limits_from(limit or []), ready, **loading)
