"""Settings of the server."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from medmvl.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class Limits:
    """Limits that protect the server and its other clients.

    Attributes:
        body_mib: largest request body.
        bodies_mib: largest sum of the bodies that are held at once.
        pixels: most pixels of an image.
        voxels: most voxels of a volume.
        new_tokens: longest answer in tokens; also the default of a request that names none, if it is below 256.
        answers: most answers of one request (`n`).
        visual_inputs: most images and volumes of one request.
        batch: answers that are decoded together.
        waiting: requests that may be open in all; more are refused with 503.
        per_key: requests of one key that may be open; more are refused with 429.
        per_minute: requests of one key per minute; 0: no limit.
        seconds: time of one request, from its arrival to the end of its answer.
        upload_seconds: time in which a body must arrive.
        read_seconds: time for reading one image or volume.
        drain_seconds: time that open requests have after SIGTERM.
        studies_mib: memory for studies that were sent and can be named again by uuid.
        study_minutes: time after its last use that a study is kept.
    """

    body_mib: int = 512
    bodies_mib: int = 2048
    pixels: int = 50_000_000
    voxels: int = 1024 * 512 * 512
    new_tokens: int = 1024
    answers: int = 8
    visual_inputs: int = 8
    batch: int = 32
    waiting: int = 128
    per_key: int = 64
    per_minute: int = 0
    seconds: float = 300.0
    upload_seconds: float = 60.0
    read_seconds: float = 120.0
    drain_seconds: int = 60
    studies_mib: int = 1024
    study_minutes: float = 60.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            whole = isinstance(value, int) and name != "per_minute"
            if not value >= (1 if whole else 0):
                raise RecipeError(f"The limit {name} must be at least {1 if whole else 0}, got {value}.")


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens, whom it answers, and what it may read.

    Attributes:
        name: name of the model for clients.
        host, port: address to listen on; port 0 takes a free one.
        keys: API key -> its id in audit lines and limits; empty: no key is asked for.
        without_key: whether an address other than the loopback may be served without a key.
        allowed_hosts: further names in the Host header, such as that of a reverse proxy.
        media_root: folder below which `file://` paths are read; None: none are.
        url_hosts: hosts (with port, unless it is the default one) from which URLs are fetched; default: none.
        audit: JSON Lines file of the audit; None: none.
        audit_days: how many daily audit files are kept.
        readers: processes that read uploads.
        tls: certificate and key file; None: no TLS.
        page: whether the web page is served at `/`.
        backend: URL of a vLLM server that runs the LLM; None: it runs here.
        backend_key: API key of that server.
        abstain_below: confidence below which no answer is given, a number or "stored"; a request may only raise it.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    keys: dict[str, str] = field(default_factory=dict)
    without_key: bool = False
    allowed_hosts: tuple[str, ...] = ()
    media_root: Path | None = None
    url_hosts: tuple[str, ...] = ()
    audit: Path | None = None
    audit_days: int = 190
    readers: int = 2
    tls: tuple[Path, Path] | None = None
    page: bool = False
    backend: str | None = None
    backend_key: str | None = None
    abstain_below: float | str | None = None

    def __post_init__(self) -> None:
        if self.page and self.backend is not None:
            raise RecipeError(
                "--page and --backend exclude each other: the page explains answers by an LLM that runs here."
            )
        if not self.keys and not self.without_key and not is_loopback(self.host):
            raise RecipeError(
                f"--host {self.host} makes the server reachable from other machines, and no API key is set: anybody could ask "
                "it and name files below --media-root. Give --api-key-file, or --without-key as well if that is what you want."
            )


def is_loopback(host: str) -> bool:
    """Whether an address or name reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_keys(path: Path) -> dict[str, str]:
    """Return API key -> id from a file with a line `id: key` per client; lines that begin with # are comments.

    Raises:
        RecipeError: for a line of another form, a key under 16 characters, or one that occurs twice.
    """
    keys: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The key file {path} cannot be read: {getattr(error, 'strerror', 'not UTF-8')}.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, found, key = (part.strip() for part in line.partition(":"))
        if not found or not name or len(key) < 16 or key in keys:
            raise RecipeError(
                f"{path}, line {number}: wanted is `id: key`, with a key of 16 characters or more, each once."
            )
        keys[key] = name
    if not keys:
        raise RecipeError(f"{path} holds no key. Write a line `id: key` for each client.")
    return keys


def limits_from(pairs: Sequence[str]) -> Limits:
    """Return the limits with some set by texts such as "waiting=64".

    Raises:
        RecipeError: for an unknown name or a value that is no number.
    """
    types = {entry.name: entry.type for entry in fields(Limits)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in types:
            raise RecipeError(f"Unknown limit {name!r}. {did_you_mean(name, types)}")
        try:
            values[name] = int(text) if types[name] == "int" else float(text)
        except ValueError:
            raise RecipeError(f"The limit {name} must be a number, got {text!r}.") from None
    return Limits(**values)
