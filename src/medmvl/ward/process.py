"""`process_study`: a folder with one study and a protocol in, results out."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydicom.dataset import Dataset

from medmvl.data.read_spelling import spell_protocol
from medmvl.errors import ImagingError, WardError, did_you_mean
from medmvl.files import PathLike, write_json
from medmvl.imaging import WINDOWS, read_image, read_volume
from medmvl.ward.answering import Answerer, ModelAnswerer, Visuals
from medmvl.ward.codes import site_code
from medmvl.ward.findings import Finding
from medmvl.ward.key_images import KeyImage, key_images
from medmvl.ward.objects import build_objects
from medmvl.ward.objects.content import ResultContent
from medmvl.ward.protocol import Protocol
from medmvl.ward.selection import choose_series, reads_as_volume
from medmvl.ward.study import Series, Study, read_study

Outcome = Literal["results", "nothing-to-send", "no-series", "unchanged"]


@dataclass(frozen=True)
class StudyResult:
    """Result of processing a study.

    Attributes:
        outcome: results; nothing-to-send if no answer is to be sent; no-series if no series fits the protocol; unchanged
            if the result is known already.
        identity: UUID of (study, images read, protocol, model); the UIDs of all objects derive from it, so the same
            input gives the same UIDs. Empty without a series.
        findings: all questions with their answers, also those that are not sent.
        objects: DICOM objects to send.
        notes: what a reader should know: series that were not taken and why, warnings of the reader.
    """

    outcome: Outcome
    study_uid: str
    identity: str
    series: str
    findings: tuple[Finding, ...]
    objects: tuple[Dataset, ...]
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON values, without patient data and without UIDs."""
        return {
            "outcome": self.outcome,
            "series": self.series,
            "findings": [
                {
                    "id": finding.question.id,
                    "question": finding.question.ask,
                    "answer": finding.answer,
                    _probability_key(finding): finding.probability,
                    "positive": finding.positive,
                    "sent": finding.sent and self.outcome == "results",
                }
                for finding in self.findings
            ],
            "objects": [str(data.SeriesDescription) for data in self.objects],
            "notes": list(self.notes),
        }

    def write(self, folder: PathLike) -> list[Path]:
        """Write the objects as `<series UID>#<instance UID>.dcm`, mercure's naming, and return the paths."""
        paths = []
        for data in self.objects:
            path = Path(folder) / f"{data.SeriesInstanceUID}#{data.SOPInstanceUID}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            data.save_as(path, enforce_file_format=True)
            paths.append(path)
        return paths

    def write_summary(self, path: PathLike) -> None:
        """Write `summary` as JSON."""
        write_json(path, self.summary())


def process_study(
    folder: PathLike,
    protocol: Protocol,
    answerer: Answerer | None = None,
    *,
    is_known: Callable[[str], bool] = lambda identity: False,
    on_question: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> StudyResult:
    """Choose a series of the study in `folder`, ask the protocol's questions about it, and build the results.

    Args:
        answerer: the model; None: load the protocol's `model`.
        on_question: called before the first question and after each, with the numbers of answered and of all questions.
        is_known: whether the result of an identity exists already; the model is then not asked.
        options: device and dtype of a model that is loaded here.

    Raises:
        WardError: if the folder is not one whole study, or the protocol names no model.
        ImagingError: if the chosen series cannot be read.
    """
    check_names(protocol)
    study = read_study(folder)
    choice = choose_series(study, protocol.series)
    if choice.series is None:
        return StudyResult("no-series", study.uid, "", "", (), (), choice.reasons)
    if answerer is None:
        answerer = load_model(protocol, **options)
    identity = result_identity(study, choice.series, protocol, answerer.fingerprint)
    if is_known(identity):
        return StudyResult("unchanged", study.uid, identity, choice.series.describe(), (), (), choice.reasons)
    visuals, warnings = read_series(choice.series, protocol)
    findings = _ask(protocol, answerer, visuals, on_question)
    notes = (*warnings, *(f"not read: {reason}" for reason in choice.reasons))
    sent = tuple(finding for finding in findings if finding.sent)
    wanted = protocol.results.send_when == "always" or any(finding.positive for finding in sent)
    described = choice.series.describe()
    if not sent or not wanted:
        return StudyResult("nothing-to-send", study.uid, identity, described, findings, (), notes)
    content = ResultContent(
        study, choice.series, protocol, answerer.name, answerer.fingerprint, identity, sent, warnings
    )
    objects = build_objects(content, _key_images(choice.series, protocol, sent))
    return StudyResult("results", study.uid, identity, described, findings, tuple(objects), notes)


def _ask(
    protocol: Protocol, answerer: Answerer, visuals: Visuals, on_question: Callable[[int, int], None]
) -> tuple[Finding, ...]:
    """Return the findings of all questions about the visual inputs."""
    findings: list[Finding] = []
    on_question(0, len(protocol.questions))
    for question in protocol.questions:
        reply = answerer.answer(question.ask, visuals, question.choices, question.max_new_tokens)
        findings.append(Finding(question, reply))
        on_question(len(findings), len(protocol.questions))
    return tuple(findings)


def _probability_key(finding: Finding) -> str:
    """Return the key of a finding's probability: a yes-no question has that of yes, whatever the answer."""
    return "probability_of_yes" if finding.question.kind == "yes-no" else "probability_of_answer"


def load_model(protocol: Protocol, **options: Any) -> ModelAnswerer:
    """Load the protocol's model.

    Raises:
        WardError: if the protocol names none.
    """
    if protocol.model is None:
        raise WardError("No model is given. Set `model:` in the protocol, or use --model.")
    return ModelAnswerer.from_folder(protocol.model, **options)


def check_names(protocol: Protocol) -> None:
    """Raise a WardError if a site or the display window is unknown, or the font file is missing."""
    for question in protocol.questions:
        site_code(question.site, question.finding)
    window, font = protocol.results.window, protocol.results.font
    if window is not None and window not in WINDOWS:
        raise WardError(f"results.window: unknown window {window!r}. {did_you_mean(window, WINDOWS)}")
    if font is not None and not Path(font).is_file():
        raise WardError(f"results.font: the font file {font} does not exist.")


def result_identity(study: Study, series: Series, protocol: Protocol, fingerprint: str) -> str:
    """Return a UUID that depends on the study, the images read, the protocol and the model, and on nothing else."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "\n".join((study.uid, series.digest, protocol.hash, fingerprint))))


def read_series(series: Series, protocol: Protocol) -> tuple[Visuals, tuple[str, ...]]:
    """Read the pixels of a series: all of a volume, or the first image.

    Returns:
        the visual inputs of the model, and warnings.
    """
    if reads_as_volume(series, protocol.series):
        with _linked(series) as folder:
            try:
                volume = read_volume(folder, **protocol.series.reading())
            except ImagingError as error:
                raise ImagingError(spell_protocol(str(error))) from error
        return Visuals(volumes=(volume,)), tuple(volume.warnings)
    first = series.instances[0]
    image = read_image(first.path, frame=0 if first.frames > 1 else None)
    more = series.slices - 1
    return Visuals(images=(image,)), (f"the first of {series.slices} images was read",) if more else ()


def _key_images(series: Series, protocol: Protocol, findings: tuple[Finding, ...]) -> list[KeyImage]:
    if reads_as_volume(series, protocol.series):
        return key_images(series, protocol.results.key_slices, protocol.results.window, boxes=())
    boxes = tuple(finding.box for finding in findings if finding.box is not None)
    return key_images(series, 1, protocol.results.window, boxes=boxes)


@contextmanager
def _linked(series: Series) -> Iterator[Path]:
    """Give a folder of symbolic links to the files of one series, or its file if it has only one."""
    if len(series.instances) == 1:
        yield series.instances[0].path
        return
    with tempfile.TemporaryDirectory(prefix="medmvl-") as folder:
        for number, instance in enumerate(series.instances):
            (Path(folder) / f"{number:05d}.dcm").symlink_to(instance.path.resolve())
        yield Path(folder)
