"""Input folder to output folder: the interface of mercure, MONAI Deploy, Holoscan and XNAT containers."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmvl.errors import MedMVLError, WardError
from medmvl.files import OutputLock, PathLike, existing_folder, read_json, write_json
from medmvl.ward.answering import Answerer
from medmvl.ward.process import StudyResult, process_study
from medmvl.ward.protocol_file import load_protocol

#: environment variables of launchers: the folder to read, the folder to write
FOLDER_VARIABLES = (
    ("MERCURE_IN_DIR", "MERCURE_OUT_DIR"),
    ("MONAI_INPUTPATH", "MONAI_OUTPUTPATH"),
    ("HOLOSCAN_INPUT_PATH", "HOLOSCAN_OUTPUT_PATH"),
)


def find_folders(source: PathLike | None, out: PathLike | None) -> tuple[Path, Path]:
    """Return the input and output folders: those given, else those of the launcher's environment variables.

    Raises:
        WardError: if one of them is neither given nor in the environment.
    """
    found = []
    for which, (given, option) in enumerate(((source, "--in"), (out, "--out"))):
        names = [pair[which] for pair in FOLDER_VARIABLES]
        value = given if given is not None else next((os.environ[name] for name in names if os.environ.get(name)), None)
        if value is None:
            raise WardError(f"No folder for {option} is given. Use {option}, or set one of {', '.join(names)}.")
        found.append(Path(value))
    return found[0], found[1]


def task_settings(folder: Path) -> dict[str, Any]:
    """Return `process.settings` of the task.json that mercure puts into the input folder; {} without one.

    Raises:
        WardError: if it lists several processing steps, or its settings are not a mapping.
    """
    if not (folder / "task.json").is_file():
        return {}
    task = read_json(folder / "task.json")
    process = task.get("process") if isinstance(task, dict) else None
    if isinstance(process, list):
        if len(process) > 1:
            raise WardError(f"task.json lists {len(process)} processing steps; it must hold the settings of one.")
        process = process[0] if process else None
    settings = process.get("settings") if isinstance(process, dict) else None
    if settings is not None and not isinstance(settings, dict):
        raise WardError("process.settings in task.json must hold keys and values.")
    return settings or {}


def run_study(
    source: PathLike | None = None,
    out: PathLike | None = None,
    *,
    protocol: PathLike | Mapping[str, Any] | None = None,
    model: PathLike | None = None,
    answerer: Answerer | None = None,
    **options: Any,
) -> StudyResult:
    """Process the study in a folder and write the result objects and result.json to another.

    Args:
        source, out: folders; None: from the environment, see `FOLDER_VARIABLES`.
        protocol: file or content; None: the setting `protocol` of task.json. Other settings of task.json replace values
            of the protocol by dotted keys, such as "results.language".
        model: checkpoint folder instead of the protocol's.
        answerer: the model itself, already loaded.
        options: device and dtype of the model, and `on_question` of `process_study`.

    Raises:
        BusyError: naming the process, if another one writes to `out`.
        MedMVLError: if the study cannot be processed or no series fits the protocol. result.json then says why.
    """
    folder, target = find_folders(source, out)
    existing_folder(folder, "input folder")
    with OutputLock(target, folder=True):
        return _run(folder, target, protocol, model, answerer, options)


def _run(
    folder: Path,
    target: Path,
    protocol: PathLike | Mapping[str, Any] | None,
    model: PathLike | None,
    answerer: Answerer | None,
    options: dict[str, Any],
) -> StudyResult:
    """Process the study in `folder` and write to `target`, see `run_study`."""
    begin = time.monotonic()
    try:
        settings = dict(task_settings(folder))
        wanted = settings.pop("protocol", None) if protocol is None else protocol
        if wanted is None:
            raise WardError("No protocol is given. Use --protocol, or the setting `protocol` in task.json.")
        if model is not None:
            settings["model"] = str(model)
        parsed = load_protocol(wanted, settings)
        result = process_study(folder, parsed, answerer, **options)
        result.write(target)
        if result.outcome == "no-series":
            raise WardError(f"No series of the study fits the protocol: {'; '.join(result.notes)}.")
    except MedMVLError as error:
        failed = {"outcome": "failed", "error": str(error)}
        write_json(target / "result.json", {**failed, **_notification(f"MedM-VL failed: {error}", requested=True)})
        raise
    seconds = round(time.monotonic() - begin, 3)
    positive = any(finding.positive for finding in result.findings)
    notification = _notification(_sentence(result), requested=positive)
    write_json(target / "result.json", {**result.summary(), "seconds": seconds, **notification})
    return result


def _notification(text: str, *, requested: bool) -> dict[str, Any]:
    """Return the key by which mercure is asked for a notification."""
    return {"__mercure_notification": {"text": text, "requested": requested}}


def _sentence(result: StudyResult) -> str:
    if not result.objects:
        return "AI-generated, research use only. Nothing to send."
    scored = [f"{f.question.label}: {f.answer}" for f in result.findings if f.probability is not None and f.sent]
    return "AI-generated, research use only. " + ("; ".join(scored) or "Results are ready.")
