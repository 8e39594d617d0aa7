"""Questions that a model was trained with, stored in its checkpoint folder, so that others can ask in the same words."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER, Sample
from medmvl.errors import counted
from medmvl.files import read_json, write_json

FILE = "prompts.json"
#: Patients or records in which a question must occur: one that occurs less often may tell about a patient.
_LEAST_OCCURRENCES = 3
#: Questions that are kept of a task, and answers up to which a question counts as closed.
_MOST_QUESTIONS, _MOST_OPTIONS = 12, 5
#: Longest question, and longest option, in characters.
_LONGEST, _LONGEST_OPTION = 300, 60
#: Bytes of a file that is used: every visitor of the page gets its content.
_LARGEST = 2**18


@dataclass(frozen=True)
class Prompt:
    """A question in the words of the training data.

    Attributes:
        text: without placeholders.
        options: its answers, if all its answers in the data are a few short ones; else empty.
    """

    text: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskPrompts:
    """The most frequent questions of a task.

    Attributes:
        task: the records' `task`, or the name of the data set.
        modality: "image", "volume" or "text".
        prompts: the most frequent first.
    """

    task: str
    modality: str
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class StoredPrompts:
    """What a checkpoint folder says of its training questions.

    Attributes:
        tasks: empty if the folder holds no such file.
        images, volumes: most images and volumes of one training record; 0 if it is not known.
        synthetic: whether it was trained on phantoms drawn by this toolkit.
        together: most images and volumes together of one training record; 0 if it is not known.
        dialogs: whether a training record about a picture holds several questions; None if it is not known.
    """

    tasks: tuple[TaskPrompts, ...] = field(default=())
    images: int = 0
    volumes: int = 0
    synthetic: bool = False
    together: int = 0
    dialogs: bool | None = None

    def or_of(self, base: StoredPrompts) -> StoredPrompts:
        """Return these prompts, or if there are none, those of the checkpoint that the training started from.

        Questions of both are never mixed: the later training may have unlearned what only the earlier one asked.
        """
        if self.tasks:
            return self
        return replace(
            base,
            images=self.images or base.images,
            volumes=self.volumes or base.volumes,
            together=self.together or base.together,
            synthetic=self.synthetic,
            dialogs=base.dialogs if self.dialogs is None else self.dialogs,
        )

    def beyond_training(self, images: int, volumes: int) -> str:
        """Return how a question shows more than any training record, or "" if it does not or that is not known."""
        for what, count, most in (("image", images, self.images), ("volume", volumes, self.volumes)):
            if most and count > most:
                return f"The model was trained with at most {counted(most, what)} at a time; {count} were given."
        if images and volumes and images + volumes > self.together > 0:
            seen = (
                "either an image or a volume" if self.together == 1 else f"at most {self.together} images and volumes"
            )
            given = f"{counted(images, 'image')} and {counted(volumes, 'volume')}"
            return f"The model was trained with {seen} at a time; {given} were given."
        return ""

    def save(self, folder: Path) -> None:
        """Write the file into a checkpoint folder."""
        write_json(folder / FILE, asdict(self))


def read_prompts(folder: Path) -> StoredPrompts:
    """Return the prompts stored in a checkpoint folder; empty ones if there is no file that can be read and shown."""
    try:
        found = read_json(folder / FILE)
        if len(json.dumps(found, ensure_ascii=False).encode()) > _LARGEST:  # halves of surrogate pairs raise
            return StoredPrompts()
        tasks = tuple(
            TaskPrompts(
                str(task["task"]),
                str(task["modality"]),
                tuple(Prompt(str(one["text"]), tuple(map(str, one["options"]))) for one in task["prompts"]),
            )
            for task in found["tasks"]
        )
        counts = {key: int(found.get(key, 0)) for key in ("images", "volumes", "together")}
        dialogs = found.get("dialogs")  # checkpoints of before 2026-12 state neither it nor `together`
        dialogs = None if dialogs is None else bool(dialogs)
        return StoredPrompts(tasks, **counts, synthetic=bool(found["synthetic"]), dialogs=dialogs)
    except Exception:  # a page without task buttons is better than none
        return StoredPrompts()


def collect_prompts(data: Iterable[tuple[str, Iterable[Sample]]], *, synthetic: bool = False) -> StoredPrompts:
    """Return the questions of training data that occur for several patients.

    Args:
        data: name and samples of each data set.
        synthetic: see `StoredPrompts`.
    """
    asked: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    answered: dict[str, set[str]] = defaultdict(set)
    images = volumes = together = 0
    dialogs: bool | None = None
    for name, samples in data:
        for sample in samples:
            images, volumes = max(images, len(sample.images)), max(volumes, len(sample.volumes))
            together = max(together, len(sample.images) + len(sample.volumes))
            key = (str(sample.extra.get("task") or name), _modality(sample))
            patient = str(sample.extra.get("patient") or sample.id)
            exchanges = _exchanges(sample)
            if key[1] != "text":
                dialogs = bool(dialogs) or len(exchanges) > 1
            for text, answer in exchanges:
                asked[key][text].add(patient)
                answers[text][answer] += 1
                answered[answer].add(patient)
    common = {answer for answer, patients in answered.items() if len(patients) >= _LEAST_OCCURRENCES}
    tasks = [
        TaskPrompts(task, modality, prompts)
        for (task, modality), texts in asked.items()
        if modality != "text" and (prompts := _frequent(texts, answers, common))
    ]
    return StoredPrompts(tuple(tasks), images, volumes, synthetic, together, dialogs)


def _frequent(texts: dict[str, set[str]], answers: dict[str, Counter[str]], common: set[str]) -> tuple[Prompt, ...]:
    usual = [text for text, patients in texts.items() if len(patients) >= _LEAST_OCCURRENCES and len(text) <= _LONGEST]
    usual.sort(key=lambda text: (-len(texts[text]), text))
    return tuple(Prompt(text, _options(answers[text], common)) for text in usual[:_MOST_QUESTIONS])


def _options(answers: Counter[str], common: set[str]) -> tuple[str, ...]:
    """Return the answers of a closed question, the most frequent first: few, short, and each common.

    Args:
        answers: of the question.
        common: answers that were given for several patients, whatever the question; they tell about none of them.
    """
    few = 2 <= len(answers) <= _MOST_OPTIONS and common.issuperset(answers)
    if not few or any(len(answer) > _LONGEST_OPTION or not answer for answer in answers):
        return ()
    return tuple(answer for answer, _ in answers.most_common())


def _exchanges(sample: Sample) -> list[tuple[str, str]]:
    messages: Sequence[Any] = sample.messages
    found = []
    for place, message in enumerate(messages):
        if message.role != "user":
            continue
        following = messages[place + 1] if place + 1 < len(messages) else None
        answer = following.text if following is not None and following.role == "assistant" else sample.answer or ""
        text = message.text.replace(IMAGE_PLACEHOLDER, "").replace(VOLUME_PLACEHOLDER, "").strip()
        if text:
            found.append((text, answer.strip()))
    return found


def _modality(sample: Sample) -> str:
    return "volume" if sample.volumes else "image" if sample.images else "text"
