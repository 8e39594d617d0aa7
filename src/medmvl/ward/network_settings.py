"""Sections of a protocol about the network: destinations and the node."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from medmvl.ward.section import Name, Section, matching

#: PS3.5, section 6.2: not only blanks, no backslash
AETitle = Annotated[
    str, matching(r"(?! *$)[ -\[\]-~]{1,16}", "an AE title: 1 to 16 ASCII characters, not only blanks, no backslash")
]
#: the value is never shown: somebody may have put the secret itself here
SecretVariable = Annotated[
    str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable, not the password or token itself")
]
WebAddress = Annotated[
    str,
    matching(
        r"https?://[^\s@?#]+",
        "an address such as https://pacs/dicom-web, without user and password; use user and password_env for them",
    ),
]
Port = Annotated[int, Field(ge=1, le=65535)]


class TLSFiles(Section):
    """PEM files of one side of a TLS connection.

    Attributes:
        certificate, key: our own.
        ca: certificates that the other side's must be signed by; a listener with it demands client certificates.
    """

    certificate: str | None = None
    key: str | None = None
    ca: str | None = None


class DicomTarget(Section):
    """A C-STORE destination."""

    host: str
    port: Port
    ae_title: AETitle
    calling_ae_title: AETitle = "MEDMVL"
    tls: TLSFiles | None = None


class WebTarget(Section):
    """A DICOMweb destination.

    Attributes:
        url: base of the service, such as https://pacs/dicom-web, without user and password: messages show it.
        user: for basic authentication, with the password in the environment variable `password_env`.
        token_env: environment variable with a bearer token.
        ca: PEM file to check the server's certificate by, instead of the system's.
        verify: ask the server by QIDO whether each object is there before it counts as sent.
    """

    url: WebAddress
    user: str | None = None
    password_env: SecretVariable | None = None
    token_env: SecretVariable | None = None
    ca: str | None = None
    verify: bool = True

    @model_validator(mode="after")
    def _one_way_to_log_in(self) -> WebTarget:
        if (self.user is None) != (self.password_env is None):
            raise ValueError("user and password_env belong together")
        if self.user is not None and self.token_env is not None:
            raise ValueError("give either user and password_env, or token_env, not both")
        return self


class Destination(Section):
    """Destination of results: exactly one of `dicom` and `dicomweb`."""

    name: Name
    dicom: DicomTarget | None = None
    dicomweb: WebTarget | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Destination:
        if (self.dicom is None) == (self.dicomweb is None):
            raise ValueError("a destination has exactly one of dicom and dicomweb")
        return self


class NodeSettings(Section):
    """The DICOM listener.

    Attributes:
        ae_title: our own; associations that call another are rejected.
        callers: AE titles that may send; others are rejected.
        host, port: address to listen on.
        spool: folder of received objects, results and state.
        tls: if given, only TLS connections are accepted.
        quiet_seconds: a study is complete if nothing has arrived for this time and its sender has closed the association.
        patience_seconds: a study counts as complete after this time even if its sender has not closed it.
        network_timeout: seconds without a byte after which an association is aborted.
        min_free_megabytes: with less free space, objects are refused as "out of resources"; senders repeat them later.
        max_object_megabytes: an association that sends a larger object is dropped. An object is held in memory, about
            three times, until it is on disk.
        keep_hours: how long received objects stay after their results were delivered.
        retry_seconds, max_retry_seconds: first and longest wait between attempts to deliver.
        max_attempts: attempts for a study that fails, or a result that a destination rejects. An unreachable
            destination is tried without limit.
        max_crashes: how often the node may end, as by a kill or for lack of memory, while it processes the same study; the
            study is then given up.
        metrics_port: loopback port of the Prometheus metrics; None: no metrics.
    """

    ae_title: AETitle = "MEDMVL"
    callers: list[AETitle] = Field(min_length=1)
    host: str = "127.0.0.1"
    port: Port = 11112
    spool: str
    tls: TLSFiles | None = None
    quiet_seconds: float = Field(default=5.0, ge=0)
    patience_seconds: float = Field(default=300.0, gt=0)
    network_timeout: float = Field(default=60.0, gt=0)
    min_free_megabytes: int = Field(default=1024, ge=0)
    max_object_megabytes: int = Field(default=2048, ge=1)
    keep_hours: float = Field(default=24.0, ge=0)
    retry_seconds: float = Field(default=5.0, gt=0)
    max_retry_seconds: float = Field(default=300.0, gt=0)
    max_attempts: int = Field(default=5, ge=1)
    max_crashes: int = Field(default=10, ge=1)
    metrics_port: Port | None = None
