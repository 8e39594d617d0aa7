"""`medmvl dicomweb`: a study from a DICOMweb service, results back to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmvl.cli import options as o
from medmvl.errors import counted


def dicomweb(
    url: Annotated[str, typer.Option(help="Base of the service, such as https://pacs/dicom-web.")],
    study: Annotated[str, typer.Option(help="Study instance UID.")],
    protocol: Annotated[Path, typer.Option(help="Protocol (YAML): series, questions, results.")],
    model: Annotated[Path | None, typer.Option("--model", help="Checkpoint folder; default: the protocol's.")] = None,
    user: Annotated[str | None, typer.Option(help="User of basic authentication.")] = None,
    password_env: Annotated[str | None, typer.Option(help="Environment variable with the password of --user.")] = None,
    token_env: Annotated[str | None, typer.Option(help="Environment variable with a bearer token.")] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM file to check the server's certificate by.")] = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
) -> None:
    """Fetch one study (QIDO, WADO), answer a protocol's questions about it, and store the results (STOW)."""
    from medmvl.errors import WardError
    from medmvl.progress_bar import progress_bar
    from medmvl.ward.dicomweb import process_web_study
    from medmvl.ward.network_settings import WebTarget
    from medmvl.ward.privacy import silence_warnings
    from medmvl.ward.protocol_file import load_protocol, parse_section

    silence_warnings()
    values = {"url": url, "user": user, "password_env": password_env, "token_env": token_env}
    target = parse_section(WebTarget, {**values, "ca": str(ca) if ca else None}, "the options")
    parsed = load_protocol(protocol, {} if model is None else {"model": str(model)})
    with progress_bar("questions") as bar:
        result, deliveries = process_web_study(
            target, study, parsed, device=device, dtype=dtype, on_question=bar.update
        )
    failed = [delivery for delivery in deliveries if delivery.state != "stored"]
    if failed:
        raise WardError(f"{len(failed)} of {counted(len(deliveries), 'result')} not stored: {failed[0].reason}.")
    if result.outcome == "no-series":
        raise WardError(f"No series of the study fits the protocol: {'; '.join(result.notes)}.")
    typer.echo(f"{result.outcome}: {counted(len(deliveries), 'object')} stored")
