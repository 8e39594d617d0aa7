"""DICOMweb: studies by QIDO and WADO, results by STOW."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset

from medmvl.errors import MedMVLError, WardError
from medmvl.ward.answering import Answerer
from medmvl.ward.network_settings import WebTarget
from medmvl.ward.outcome import Delivery
from medmvl.ward.process import StudyResult, process_study
from medmvl.ward.protocol import Protocol, SeriesRule

#: seconds to wait for a connection, and for the next bytes of an answer
_TIMEOUT = (10, 120)
_TEMPORARY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
#: Largest answer in bytes, of a list of series and of a series of objects.
_MOST_BYTES, _MOST_STREAMED_BYTES = 2**28, 2**33
_SERIES_UID, _MODALITY = "0020000E", "00080060"


class _Session(requests.Session):
    """A session whose requests have a time limit and whose answers have a largest size, which requests' own do not."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request; see `requests.Session.request`.

        Raises:
            requests.RequestException: also if the answer is too large; bytes are counted after decompression.
        """
        kwargs["timeout"] = kwargs.get("timeout") or _TIMEOUT
        streamed = kwargs.get("stream", False)
        response = super().request(*args, **{**kwargs, "stream": True})
        pieces = response.iter_content
        most = _MOST_STREAMED_BYTES if streamed else _MOST_BYTES
        vars(response)["iter_content"] = lambda *size, **option: _bounded(pieces(*size, **option), most)
        if not streamed:
            _ = response.content  # read now, by `iter_content`
        return response


def _bounded(pieces: Iterator[bytes], most: int) -> Iterator[bytes]:
    """Yield the pieces of an answer until they have more than `most` bytes, which is an error."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > most:
            raise _TooLargeError
        yield piece


class _TooLargeError(requests.RequestException):
    """An answer is larger than any study is."""


def connect(target: WebTarget) -> DICOMwebClient:
    """Return a client for a DICOMweb service; nothing is sent yet.

    Raises:
        WardError: if an environment variable or the certificate file that the target names is missing.
    """
    session = _Session()
    if target.user is not None:
        session.auth = (target.user, _secret(target.password_env))
    if target.token_env is not None:
        session.headers["Authorization"] = f"Bearer {_secret(target.token_env)}"
    if target.ca is not None:
        if not Path(target.ca).is_file():
            raise WardError(f"The certificate file {target.ca} does not exist.")
        session.verify = target.ca
    client = DICOMwebClient(target.url, session=session)
    client.set_http_retry_params(retry=False)  # attempts are counted and spaced by the caller
    return client


def _secret(variable: str | None) -> str:
    value = os.environ.get(variable or "")
    if not value:
        raise WardError(f"The environment variable {variable} is not set. It must hold the password or token.")
    return value


def process_web_study(
    target: WebTarget, uid: str, protocol: Protocol, answerer: Answerer | None = None, **options: Any
) -> tuple[StudyResult, list[Delivery]]:
    """Fetch a study, process it, and store the results at the same service.

    Args:
        uid: study instance UID.
        answerer: the model; None: load the protocol's.
        options: device and dtype of a model that is loaded here.

    Returns:
        the result, and the outcome of sending each of its objects.

    Raises:
        WardError: if the service cannot be used, or has no such study or no series of a wanted modality.
    """
    with tempfile.TemporaryDirectory(prefix="medmvl-") as folder:
        fetch_study(target, uid, protocol.series, Path(folder) / "in")
        result = process_study(Path(folder) / "in", protocol, answerer, **options)
        return result, stow(target, result.write(Path(folder) / "out"))


def fetch_study(target: WebTarget, uid: str, rule: SeriesRule, folder: Path) -> None:
    """Retrieve the series of a study whose modality the rule wants into a new folder.

    Raises:
        WardError: as `process_web_study` does.
    """
    client = connect(target)
    folder.mkdir(parents=True)
    try:
        found = client.search_for_series(uid)
        modalities = {_first(series, _SERIES_UID): _first(series, _MODALITY) for series in found}
        wanted = [series for series, modality in modalities.items() if modality in rule.modality]
        if not modalities:
            raise WardError(f"{target.url} has no series of this study. Check the study instance UID.")
        if not wanted:
            listed = ", ".join(sorted(set(modalities.values())))
            raise WardError(f"The study has no series of modality {' or '.join(rule.modality)}; it has {listed}.")
        for index, series in enumerate(wanted):
            for number, data in enumerate(client.iter_series(uid, series)):
                data.save_as(folder / f"{index:03d}-{number:05d}.dcm", enforce_file_format=True)
    except requests.RequestException as error:
        raise WardError(f"{target.url} cannot be used: {_reason(error)}.") from error
    except (MedMVLError, OSError, MemoryError):
        raise
    except Exception as error:  # what parsers of JSON, multipart and DICOM raise for an answer of another kind
        raise WardError(f"{target.url} cannot be used: its answer is no DICOMweb ({type(error).__name__}).") from error


def stow(target: WebTarget, files: Sequence[Path]) -> list[Delivery]:
    """Store files one by one and return the outcome of each, in order.

    Raises:
        WardError: if an environment variable or the certificate file that the target names is missing.
    """
    client = connect(target)
    return [_store(client, dcmread(file), target.verify) for file in files]


def _store(client: DICOMwebClient, data: Dataset, verify: bool) -> Delivery:
    """Store one object; with `verify`, only what the service then lists counts as stored."""
    try:
        failure = _post(client, data)
        if failure is not None:
            return failure
        if verify and not _is_listed(client, data):
            return Delivery("unreachable", "the service answered success but does not list the object")
        return Delivery("stored")
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        temporary = status in _TEMPORARY or status >= 500 or status == 0
        return Delivery("unreachable" if temporary else "rejected", _reason(error))
    except requests.RequestException as error:
        return Delivery("unreachable", _reason(error))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # as in `fetch_study`
        return Delivery("unreachable", f"its answer is no DICOMweb ({type(error).__name__})")


def _post(client: DICOMwebClient, data: Dataset) -> Delivery | None:
    """Send one object; return the failure that the service's answer states, or None."""
    try:
        answer = client.store_instances([data])
    except ValueError:  # an answer of another media type than the client reads; its status was success
        return None
    failed = answer.get("FailedSOPSequence") if answer is not None else None
    return (
        Delivery("rejected", f"STOW failure reason {int(failed[0].get('FailureReason') or 0):04X}H") if failed else None
    )


def _is_listed(client: DICOMwebClient, data: Dataset) -> bool:
    found = client.search_for_instances(
        data.StudyInstanceUID, data.SeriesInstanceUID, search_filters={"SOPInstanceUID": data.SOPInstanceUID}
    )
    return bool(found)


def _reason(error: requests.RequestException) -> str:
    """Return an error in words, without the address (it holds UIDs)."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        hint = "; check user and password or token" if status in (401, 403) else ""
        return f"HTTP status {status}{hint}"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted; give the signer's certificate with ca"
    if isinstance(error, _TooLargeError):
        return "its answer is too large"
    return "it gave no answer in time" if isinstance(error, requests.Timeout) else "no connection"


def _first(attributes: dict[str, Any], tag: str) -> str:
    values = attributes.get(tag, {}).get("Value") or [""]
    return str(values[0])
