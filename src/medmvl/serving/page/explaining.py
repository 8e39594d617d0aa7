"""Evidence for a sentence of an answer: a heat map over the opened study, and a bar for each slice."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medmvl.data.sample import Message
from medmvl.imaging import Volume
from medmvl.imaging.formats.pictures import open_picture
from medmvl.inference.evidence import METHODS, Evidence
from medmvl.serving.page.asking import Asking, find_turn
from medmvl.serving.page.conversation import Turn, conversation
from medmvl.serving.page.errors import PageError
from medmvl.serving.page.sessions import HeatMap, OpenStudy, Session
from medmvl.serving.page.study import VIEW_IMAGE, VIEW_VOLUME, save_ras

#: Longest side of a heat map that is sent: it is no finer than the model's patches.
_LONGEST_MAP = 96
#: Maps of a session that are kept.
_MOST_MAPS = 100
#: Least probability that is shown as a number, and the largest factor.
_LEAST_TELLING, _MOST_FACTOR = 0.001, 1000
_PLANES = ("sagittal", "coronal", "axial")


async def explain(asking: Asking, session: Session, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the progress of an explanation and its maps, coarse ones first; leaving the iterator stops it.

    The events are `progress` (inputs run, inputs in all) and `map` (see `_written`); the last map has `final` true.

    Args:
        request: `version`, `turn`, `sentence` (default: the whole answer), `method`, and `study`: its number.

    Raises:
        PageError: if it cannot be explained.
    """
    turn, study = _checked(session, request)
    version, news, cancel = session.version, asyncio.Queue[dict[str, Any]](), threading.Event()
    loop = asyncio.get_running_loop()

    def tell(event: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(news.put_nowait, event)

    def work() -> None:
        messages, target = _conversation(session, turn, study)
        found = asking.models[0].explain(
            messages,
            [_picture(other) for other in session.studies],
            answer=turn.answers[0],
            sentence=request.get("sentence"),
            target=target,
            method=request.get("method", "occlusion"),
            progress=lambda done, total: tell({"progress": [done, total]}),
            on_level=lambda coarse: tell({"evidence": coarse, "final": False}),
            cancel=cancel,
        )
        tell({"evidence": found, "final": True})

    task = asyncio.ensure_future(asking.analyze(work))

    def ended(done: asyncio.Future[Any]) -> None:
        news.put_nowait({})
        if not done.cancelled():
            done.exception()  # a visitor who has left asks for it no more

    task.add_done_callback(ended)
    try:
        while event := await news.get():
            session.check(version)
            if "evidence" in event:
                facts, path = await asyncio.to_thread(_written, session.folder, event["evidence"])
                if session.version != version:
                    path.unlink(missing_ok=True)
                session.check(version)
                session.evidence[facts["id"]] = HeatMap(path, study, facts)
                if len(session.evidence) > _MOST_MAPS:
                    session.evidence.pop(next(iter(session.evidence))).path.unlink(missing_ok=True)
                event = {"map": {**facts, "final": event["final"]}}
            yield event
        await task  # raises what went wrong
    finally:
        cancel.set()


def _checked(session: Session, request: dict[str, Any]) -> tuple[Turn, OpenStudy]:
    """Return the turn and the study that a request names.

    Raises:
        PageError: if it names what is not there.
    """
    session.check(request.get("version"))
    turn = find_turn(session, request.get("turn"))
    sentence, number = request.get("sentence"), request.get("study", 0)
    if turn.withheld[0] is not None:
        raise PageError(400, "This answer is withheld, so it is not explained.")
    if request.get("method", "occlusion") not in METHODS:
        raise PageError(400, f"A method is one of {', '.join(METHODS)}.")
    if sentence is not None and (not isinstance(sentence, str) or sentence not in turn.answers[0]):
        raise PageError(400, "The sentence is no part of the answer.", "changed")
    if type(number) is not int or not 0 <= number < len(session.studies):
        raise PageError(404, "There is no such study.", "changed")
    return turn, session.studies[number]


def _conversation(session: Session, turn: Turn, study: OpenStudy) -> tuple[tuple[Message, ...], str]:
    """Return the conversation up to a turn's question as the model read it, and the name of a study among its inputs."""
    kinds = [other.kind for other in session.studies]
    earlier = session.turns[turn.left_out : session.turns.index(turn)] if turn.follow_up else []
    sample = conversation(earlier, 0, turn.text, kinds.count("image"), kinds.count("volume"))
    index = [other for other in session.studies if other.kind == study.kind].index(study)
    return sample.messages, f"{study.kind}:{index}"


def _picture(study: OpenStudy) -> PIL.Image.Image | Volume:
    """Return an open study as the predictor takes it."""
    if study.kind == "image":
        return open_picture(study.folder / VIEW_IMAGE).convert("RGB")
    file: Any = nibabel.load(study.folder / VIEW_VOLUME)
    return Volume(array=np.asanyarray(file.dataobj), units=study.facts["units"], affine=file.affine)


def _written(folder: Path, evidence: Evidence) -> tuple[dict[str, Any], Path]:
    """Write the map of evidence into a folder; returns what the page shows of it, and the file."""
    name = secrets.token_hex(8)
    top = float(evidence.heat.max())
    share = evidence.share
    path = folder / f"evidence-{name}"
    if evidence.affine is not None:
        coarse, affine = coarser(share, evidence.affine)
        path = path.with_suffix(".nii")
        save_ras(coarse, affine, path)
    else:
        path = path.with_suffix(".png")
        picture = PIL.Image.fromarray(np.rint(share * 255).astype(np.uint8))
        picture.thumbnail((2 * _LONGEST_MAP, 2 * _LONGEST_MAP))
        picture.save(path)
    neutral = evidence.neutral_log_probability
    facts = {
        "id": name,
        "preview": evidence.is_preview,
        "sentence": evidence.sentence,
        "probability": float(np.exp(evidence.log_probability)),
        "neutral": None if neutral is None else float(np.exp(neutral)),
        "factor": None if neutral is None else _factor(evidence.log_probability, neutral),
        "top": top,
        "scale": evidence.scale,
        "doubts": evidence.doubts,
        "plane": _PLANES[evidence.slice_axis] if evidence.heat.ndim == 3 else None,
        "slices": [float(f"{value:.4g}") for value in evidence.slices],
        "peak": [(place + 0.5) / length for place, length in zip(evidence.peak, evidence.heat.shape, strict=True)],
    }
    return facts, path


def _factor(log_probability: float, neutral: float) -> str | None:
    """Return how many times as likely as with a neutral picture a sentence is; None if its probability tells more.

    A long text is always unlikely in exactly its words: "< 0.1 %" with the picture and without would tell nothing.
    """
    if np.exp(log_probability) >= _LEAST_TELLING:
        return None
    factor = np.exp(np.clip(log_probability - neutral, -100, 100))
    if factor >= _MOST_FACTOR:
        return f"> {_MOST_FACTOR}"
    return "< 0.1" if factor < 0.1 else f"{factor:.{0 if factor >= 10 else 1}f}"


def coarser(
    values: NDArray[np.float32], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the means of blocks of values (x, y, z), and the (4, 4) affine of the blocks.

    The blocks are just large enough that no side is longer than `_LONGEST_MAP`; what remains at the far edges repeats the last values.
    """
    steps = [-(-length // _LONGEST_MAP) for length in values.shape]
    padded = np.pad(
        values, [(0, -length % step) for length, step in zip(values.shape, steps, strict=True)], mode="edge"
    )
    shape = [part for length, step in zip(padded.shape, steps, strict=True) for part in (length // step, step)]
    blocks = padded.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float32)
    inner = np.diag([*map(float, steps), 1.0])
    inner[:3, 3] = [(step - 1) / 2 for step in steps]
    return blocks, affine @ inner


def finer(values: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Return the inverse of `coarser`: (x, y, z) values of `shape`, each that of its block."""
    steps = [-(-length // _LONGEST_MAP) for length in shape]
    return values[np.ix_(*(np.arange(length) // step for length, step in zip(shape, steps, strict=True)))]


def evidence_file(session: Session, name: str) -> Path:
    """Return the file of a map.

    Raises:
        PageError: 404 if there is none.
    """
    if name not in session.evidence:
        raise PageError(404, "There is no such map any more.", "changed")
    return session.evidence[name].path
