"""Answers to the records of a file: order of the work, controls, choices, rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from medmvl.data.dataset import SampleDataset
from medmvl.data.record import to_record
from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER, Sample
from medmvl.errors import DataError, counted
from medmvl.inference.confidence import rounded
from medmvl.inference.engine import GenerationOptions
from medmvl.inference.predictor import Predictor
from medmvl.processing.read_ahead import media_fetcher

Control = Literal["blank", "shuffled", "text_only"]
CONTROLS: tuple[Control, ...] = ("blank", "shuffled", "text_only")


@dataclass(frozen=True)
class AnswerSettings:
    """How the records of a file are answered.

    Attributes:
        options: how answers are generated.
        save_token_ids: whether rows hold `token_ids`.
        control: "blank" shows black images and empty volumes, "shuffled" those of another patient, "text_only" none.
        choices: whether questions with known options are answered by the most likely one, see `options_of`.
    """

    options: GenerationOptions = field(default_factory=GenerationOptions)
    save_token_ids: bool = False
    control: Control | None = None
    choices: bool = False

    def facts(self) -> dict[str, Any]:
        """Return what rows depend on; a default that came later is left out, so that older files can be continued."""
        options = asdict(self.options)
        if options["abstain_below"] is None:
            del options["abstain_below"]
        facts = {"control": self.control, "options": options, "save_token_ids": self.save_token_ids}
        return facts | ({"choices": True} if self.choices else {})


class Answering:
    """Answers records by their index; `SampleDataset.sample` gives paths as the user wrote them.

    Args:
        predictor: the model.
        dataset: the records.
        settings: how to answer.
    """

    def __init__(self, predictor: Predictor, dataset: SampleDataset, settings: AnswerSettings) -> None:
        self.predictor, self.dataset, self.settings = predictor, dataset, settings
        self._donors = shuffled_visual_inputs(dataset) if settings.control == "shuffled" else None

    def order(self) -> list[int]:
        """Return the indices so that records with the same images and volumes follow each other, and long ones others.

        Records that share nothing come last, by the length of their text.
        """
        groups: dict[Any, list[int]] = {}
        for index in range(len(self.dataset)):
            groups.setdefault(self.visual_inputs(index), []).append(index)

        def length(index: int) -> int:
            return sum(len(message.text) for message in self.dataset.sample(index).messages)

        shared = [sorted(members, key=length) for members in groups.values() if len(members) > 1]
        alone = sorted((members[0] for members in groups.values() if len(members) == 1), key=length)
        return [*(index for members in shared for index in members), *alone]

    def visual_inputs(self, index: int) -> tuple[Any, ...]:
        """Return what a record shows: its paths, or those of its donor; the index for a record that shows nothing."""
        sample = self.dataset.sample(index if self._donors is None else self._donors[index])
        if self.settings.control == "text_only" or not (sample.images or sample.volumes):
            return (index,)
        return sample.images, sample.volumes

    def fetch(self, index: int) -> None:
        """Fetch what a record shows into the local cache, if it is in an object store."""
        if self.settings.control != "text_only":
            media_fetcher(self.predictor.processor)(self._shown(index, self.dataset[index]))

    def __call__(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield the rows of some records, in their order."""
        samples = {index: self._question(index) for index in indices}
        options = {index: options_of(self.dataset.sample(index)) for index in indices} if self.settings.choices else {}
        generated = [index for index in indices if not options.get(index)]
        encoded = [self._encoded(index, samples[index]) for index in generated]
        keys = [samples[index].id for index in generated]
        answers = dict(zip(generated, self.predictor.generate(encoded, self.settings.options, keys=keys), strict=True))
        for index in indices:
            if (known := options.get(index)) is not None:
                yield self._row(index, samples[index], self._chosen(index, samples[index], known))
                continue
            answer = answers[index]
            said = self._said(answer.text, answer.confidence, answer.withheld)
            ids = {"token_ids": answer.token_ids} if self.settings.save_token_ids else {}
            yield self._row(index, samples[index], {**said, **ids})

    def _question(self, index: int) -> Sample:
        with self.dataset.naming(index):
            sample = self.dataset[index].as_question()
            return _without_media(sample) if self.settings.control == "text_only" else sample

    def _naming(self, index: int) -> AbstractContextManager[None]:
        """Return a context in which errors name the record whose images and volumes are shown."""
        return self.dataset.naming(index if self._donors is None else self._donors[index])

    def _shown(self, index: int, sample: Sample) -> Sample:
        return sample if self._donors is None else _with_media(sample, self.dataset[self._donors[index]])

    def _encoded(self, index: int, sample: Sample) -> dict[str, Any]:
        with self._naming(index):
            encoded = self.predictor.encode(self._shown(index, sample))
        return self.predictor.blank(encoded) if self.settings.control == "blank" else encoded

    def _chosen(self, index: int, sample: Sample, options: Sequence[str]) -> dict[str, Any]:
        blank = self.settings.control == "blank"
        with self._naming(index):
            weighed = self.predictor.weigh(self._shown(index, sample), options, blank=blank)
        best = max(weighed, key=lambda option: weighed[option])
        shares = {option: rounded(value) for option, value in weighed.items()}
        threshold = self.predictor.calibration.resolve(self.settings.options.abstain_below)
        withheld = best if weighed[best] < threshold else None
        return {**self._said(best, weighed[best], withheld), "probabilities": shares}

    def _said(self, text: str, confidence: float, withheld: str | None) -> dict[str, Any]:
        """Return what a row says; a withheld answer leaves the prediction empty."""
        said: dict[str, Any] = {"prediction": text, "confidence": rounded(confidence)}
        return said if withheld is None else {**said, "prediction": "", "abstained": True, "withheld": withheld}

    def _row(self, index: int, sample: Sample, said: dict[str, Any]) -> dict[str, Any]:
        written = self.dataset.sample(index)  # paths as the user wrote them
        return {**to_record(replace(written, answer=sample.answer)), **said}


def options_of(sample: Sample) -> list[str] | None:
    """Return the answers between which a question chooses, or None if they are not known.

    They are the record's `options` (letter -> text as "(a) text", or a list of texts), or Yes and No if its answer is one of
    them, in the spelling of the answer.
    """
    stated = sample.extra.get("options")
    if isinstance(stated, Mapping) and len(stated) > 1:
        return [f"({str(letter).lower()}) {text}" for letter, text in stated.items()]
    if isinstance(stated, list) and len({str(option) for option in stated}) == len(stated) > 1:
        return [str(option) for option in stated]
    answer = (sample.as_question().answer or "").strip()
    end = "." if answer.endswith(".") else ""
    pair = [f"{word}{end}" for word in ("Yes", "No")]
    if answer in pair:
        return pair
    return [word.lower() for word in pair] if answer in (pair[0].lower(), pair[1].lower()) else None


def shuffled_visual_inputs(dataset: SampleDataset) -> list[int]:
    """Return for each record the index of another patient's record with as many images and volumes.

    Deterministic: the next fitting record in the file, cyclically, seen from half the file away.

    Raises:
        DataError: if a record has no partner.
    """
    samples = [dataset.sample(index) for index in range(len(dataset))]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault((len(sample.images), len(sample.volumes)), []).append(index)
    donors = list(range(len(samples)))
    for (images, volumes), members in groups.items():
        if not images and not volumes:
            continue  # nothing to shuffle
        for place, index in enumerate(members):
            order = (members[(place + len(members) // 2 + step) % len(members)] for step in range(len(members)))
            donor = next((other for other in order if _patient(samples[other]) != _patient(samples[index])), None)
            if donor is None:
                raise DataError(
                    f"Record {samples[index].id}: no other patient has {counted(images, 'image')} and {counted(volumes, 'volume')} to show "
                    "instead. The shuffled control needs at least two patients of each kind."
                )
            donors[index] = donor
    return donors


def _patient(sample: Sample) -> Any:
    """Return the record's `patient`, or its paths if it names none."""
    return sample.extra.get("patient", (sample.images, sample.volumes))


def _with_media(sample: Sample, donor: Sample) -> Sample:
    return replace(sample, images=donor.images, volumes=donor.volumes)


def _without_media(sample: Sample) -> Sample:
    """Return the sample with neither pictures nor their placeholders.

    Raises:
        DataError: if a question is nothing but a picture.
    """
    messages = []
    for message in sample.messages:
        text = message.text.replace(IMAGE_PLACEHOLDER, "").replace(VOLUME_PLACEHOLDER, "").strip()
        if not text:
            raise DataError(f"Record {sample.id}: it asks nothing in words, so it has no text_only control.")
        messages.append(replace(message, text=text))
    return replace(sample, messages=tuple(messages), images=(), volumes=())
