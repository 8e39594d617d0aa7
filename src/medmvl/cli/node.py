"""`medmvl node`: run a DICOM node, show its status, retry failed work."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from medmvl.cli import options as o
from medmvl.errors import counted

ProtocolFile = Annotated[Path, typer.Argument(help="Protocol (YAML) with the sections node and destinations.")]


class _RunByDefault(typer.core.TyperGroup):
    """`medmvl node FILE` is `medmvl node run FILE`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Return the command named by the first argument, or `run` if it names none."""
        known = args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["run", *args])


node = typer.Typer(
    help="Run a DICOM node (`medmvl node PROTOCOL.yaml`): receive studies, answer, send results.",
    cls=_RunByDefault,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@node.command()
def run(
    protocol: ProtocolFile,
    model: Annotated[Path | None, typer.Option("--model", help="Checkpoint folder; default: the protocol's.")] = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
) -> None:
    """Receive studies by C-STORE, process them by the protocol, and send results until stopped."""
    from medmvl.ward.node.service import node_settings, run_node
    from medmvl.ward.privacy import silence_warnings
    from medmvl.ward.process import load_model
    from medmvl.ward.protocol_file import load_protocol

    silence_warnings()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    parsed = load_protocol(protocol, {} if model is None else {"model": str(model)})
    settings = node_settings(parsed)

    def ready() -> None:
        typer.echo(f"{settings.ae_title} listens on {settings.host}:{settings.port}; stop with Ctrl-C.")

    run_node(parsed, lambda: load_model(parsed, device=device, dtype=dtype), on_ready=ready)


@node.command()
def status(
    protocol: ProtocolFile,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Print the status of the node: studies, deliveries, failures with their reasons."""
    from medmvl.ward.node.service import node_settings
    from medmvl.ward.node.status import describe_status, node_status
    from medmvl.ward.protocol_file import load_protocol

    found = node_status(node_settings(load_protocol(protocol)))
    typer.echo(json.dumps(found, indent=2) if as_json else describe_status(found))


@node.command()
def retry(protocol: ProtocolFile) -> None:
    """Try failed studies and rejected results again, also while the node runs."""
    from medmvl.ward.node.service import node_settings
    from medmvl.ward.node.status import open_state
    from medmvl.ward.protocol_file import load_protocol

    state = open_state(node_settings(load_protocol(protocol)), readonly=False)
    studies, objects = state.retry_failed()
    state.close()
    typer.echo(f"{counted(studies, 'study', 'studies')} and {counted(objects, 'object')} will be tried again.")
