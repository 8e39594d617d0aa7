"""Opening of studies: uploads into the session's folder, then reading by a reader process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from medmvl.data.read_options import ReadOptions
from medmvl.errors import DataError
from medmvl.serving.page.errors import PageError
from medmvl.serving.page.sessions import OpenStudy, Session
from medmvl.serving.page.settings import PageSettings
from medmvl.serving.page.upload_names import Upload, summary, with_shown_names
from medmvl.serving.server.failures import RequestError

#: Studies that may be open at the same time.
MOST_STUDIES = 8


class Readers(Protocol):
    """Reader processes, see `medmvl.serving.server.readers.ReaderPool`."""

    async def study(self, sources: list[Path], out: Path, read: dict[str, Any]) -> dict[str, Any]:
        """Read files for the page."""


async def receive(session: Session, name: str, body: AsyncIterator[bytes], settings: PageSettings) -> None:
    """Write an uploaded file into the session's folder; its name is kept for display only.

    Raises:
        PageError: 413 if the visitor has sent too much.
    """
    if len(session.uploads) >= settings.files:
        raise PageError(413, f"At most {settings.files} files are taken at once.", "too_many_files")
    try:
        await _write(session, session.new_upload(name[-200:]), body, settings.upload_mib)
    except OSError as error:
        raise PageError(507, f"The file cannot be stored here: {error.strerror}.") from None


async def _write(session: Session, upload: Upload, body: AsyncIterator[bytes], upload_mib: int) -> None:
    version = session.version
    try:
        with upload.path.open("wb") as handle:
            async for piece in body:
                _check_wanted(session, version)
                session.count(upload, len(piece))
                if session.uploaded > upload_mib * 2**20:
                    session.clear()
                    raise PageError(413, f"At most {upload_mib} MiB are taken at once.", "too_large")
                handle.write(piece)
        _check_wanted(session, version)
        upload.complete = True
    finally:
        if not upload.complete:  # a visitor who leaves in the middle leaves no half of a file
            session.forget_upload(upload)


def _check_wanted(session: Session, version: int) -> None:
    if session.version != version or session.closed:
        raise PageError(409, "The upload was given up.", "changed")


async def open_uploads(session: Session, readers: Readers, request: dict[str, Any]) -> dict[str, Any]:
    """Read the uploaded files and return what the page shows: studies, series to choose from, or an error with remedies.

    Whatever comes out, the conversation is over; without `add`, so are the studies before.

    Args:
        request: `read` (options for reading, see `ReadOptions`); `add` to keep the open studies.

    Raises:
        PageError: if the files cannot be read.
    """
    async with session.reading:  # a visitor occupies one reader
        session.forget_conversation()
        try:
            return await _read_uploads(session, readers, request)
        finally:
            session.remove_unused()


async def _read_uploads(session: Session, readers: Readers, request: dict[str, Any]) -> dict[str, Any]:
    version = session.version
    uploads = [upload for upload in session.uploads if upload.complete]
    if not uploads:
        raise PageError(
            400, "Nothing was sent. Drop an image, a NIfTI file, or the files of a DICOM series.", "nothing"
        )
    if not request.get("add"):
        session.studies = []
    wanted = request.get("read") or {}
    if not isinstance(wanted, dict):
        raise PageError(400, "The options for reading are no JSON object.", version=session.version)
    given = {key: value for key, value in wanted.items() if value not in (None, "")}
    try:
        read = ReadOptions.parse(given, "The page").given()
    except DataError as error:
        raise PageError(400, str(error), version=session.version) from None
    copies = session.new_folder("sources")
    for upload in uploads:
        (copies / upload.path.name).hardlink_to(upload.path)  # readers rename their files; these stay for another try
    out = session.new_folder("study")
    try:
        answer = await readers.study(sorted(copies.iterdir()), out, read)
    except RequestError as error:
        raise PageError(400, with_shown_names(str(error), uploads), version=session.version) from None
    session.check(version)
    if "refused" in answer:
        refused = with_shown_names(answer["refused"], uploads)
        raise PageError(400, refused, remedies=answer["remedies"], version=session.version)
    if "series" in answer:
        return {"series": answer["series"], "version": session.version}
    return _opened(session, answer["studies"], [upload.name for upload in uploads])


def _opened(session: Session, found: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    studies = [OpenStudy(Path(facts.pop("folder")), facts) for facts in found]
    together = [*session.studies, *studies]
    if len(together) > MOST_STUDIES or len({study.kind for study in together}) > 1:
        raise PageError(
            400, f"Open either images or volumes, at most {MOST_STUDIES}.", "mixed", version=session.version
        )
    each = names if len(studies) == len(names) else [summary(names)] * len(studies)
    for study, name in zip(studies, each, strict=True):
        study.facts["name"] = name
    session.studies, session.uploads, session.uploaded = together, [], 0
    session.version += 1
    return {"studies": [study.facts for study in together], "version": session.version}
