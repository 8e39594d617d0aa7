"""Every command that writes outputs, with small inputs, and the content of its output without times and random names."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import yaml
from PIL import Image

from forked import start, wait
from medmvl.checkpoints import export_llava
from medmvl.checkpoints.adapters import adapt
from medmvl.phantoms import draw_patient, write_dicom_series
from tiny import make_model

_TRAINING = {
    "name": "kills", "seed": 3,
    "model": {
        "llm": {"config": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                           "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128},
                "tokenizer": {"vocab_size": 300}},
        "image": {"encoder": {"name": "siglip", "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 8}}},
    },
}  # fmt: skip
#: Files whose content tells times, machines or random names, and keys of JSON files that do.
_VOLATILE_FILES = re.compile(
    r"(log|validation)\.jsonl|environment\.json|timings?\.json|README\.md|report\.html|\.lock$"
)
_VOLATILE_KEYS = re.compile(
    r"time|seconds|date|created|uid|elapsed|per_second|memory|version|path|folder|salt|instance|^key$", re.I
)


@dataclass
class Whole:
    """An uninterrupted run.

    Attributes:
        content: of its output, see `content`.
        seconds: of the faster of two runs.
    """

    content: dict[str, str]
    seconds: float


@dataclass
class Killed:
    """A run that was killed and run again.

    Attributes:
        finished: whether it ended before the kill.
        refused: whether the second run found a complete output and refused it.
        left: hidden files after the second run.
        difference: what is wrong after the second run; "" if nothing is.
    """

    finished: bool
    refused: bool
    left: list[str]
    difference: str


def import_everything() -> None:
    """Import what the commands use, so that forks of this process start at once."""
    import torch

    import medmvl.checkpoints
    import medmvl.data.converters
    import medmvl.evaluation
    import medmvl.inference
    import medmvl.training.run
    import medmvl.ward.folder_app  # noqa: F401

    torch.set_num_threads(1)


def prepare_in_a_fork(folder: Path) -> None:
    """Call `prepare` in a fork, so that this process keeps no threads of the libraries that write the inputs."""
    child = os.fork()
    if not child:
        status = 1
        try:
            prepare(folder)
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    assert wait(child) == 0, "the inputs cannot be written"


def uninterrupted(words: list[str], out: Path, log: Path) -> Whole:
    """Run a command twice and return the content of its output, which must be the same."""
    runs, seconds = [], []
    for _ in range(2):
        clear(out)
        begin = time.monotonic()
        status = wait(start(words, log))
        seconds.append(time.monotonic() - begin)
        assert status == 0, log.read_text()[-1500:]
        runs.append(content(out))
    differ = sorted(file for file in runs[0].keys() | runs[1].keys() if runs[0].get(file) != runs[1].get(file))
    assert not differ, f"two uninterrupted runs of {words[:2]} differ: {differ}"
    return Whole(runs[0], min(seconds))


def kill_and_rerun(words: list[str], out: Path, log: Path, delay: float, whole: dict[str, str]) -> Killed:
    """Kill a command and its child processes after some seconds, run it again, and compare the output."""
    clear(out)
    process = start(words, log)
    time.sleep(delay)
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:  # it has not yet made its group
        os.kill(process, signal.SIGKILL)
    finished = wait(process) == 0
    status = wait(start(words, log))
    said, found = log.read_text(errors="replace"), content(out)
    complete = found == whole
    differ = sorted(file for file in found.keys() | whole.keys() if found.get(file) != whole.get(file))
    wrong = f"the second run ends with status {status}, {differ} differ: {said[-600:]}"
    good = complete and "Traceback" not in said and (status == 0 or (status == 2 and "exists" in said))
    left = [path.name for path in out.parent.rglob(".*")]
    return Killed(finished, bool(status) and good, left, "" if good else wrong)


def clear(out: Path) -> None:
    """Remove an output and everything next to it."""
    for path in out.parent.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def prepare(folder: Path) -> None:
    """Write the inputs of all commands into an empty folder."""
    Image.fromarray(np.arange(768, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3)).save(folder / "a.png")
    rng = np.random.default_rng(0)
    turns = [{"from": "human", "value": "<image>\nIs there x?"}]
    rows: list[dict[str, Any]] = [
        {"id": f"r{i}", "conversations": turns, "image": ["a.png"], "answer": "yes", "patient": f"p{i}"}
        for i in range(6)
    ]
    _lines(folder / "r.jsonl", rows)
    _lines(folder / "p.jsonl", [{**row, "prediction": "no"} for row in rows])
    learn = [*turns, {"from": "gpt", "value": "yes"}]
    _lines(folder / "t.jsonl", [{**row, "conversations": learn} for row in rows])
    for i in range(5):
        np.save(folder / f"v{i}.npy", rng.integers(-1000, 1000, (4, 16, 16)).astype(np.int16))
    scans = [
        {"id": f"v{i}", "conversations": [{"from": "human", "value": "<image3d>\n?"}], "image3d": [f"v{i}.npy"]}
        for i in range(5)
    ]
    _lines(folder / "v.jsonl", scans)
    (folder / "g.yaml").write_text("name: small\nbase: medm-vl-ct\nsize: [4, 16, 16]\n")
    (folder / "own-data").mkdir()
    Image.open(folder / "a.png").save(folder / "own-data" / "a.png")
    table = "".join(f"q{i},a.png,Is it?,yes,p{i}\n" for i in range(40))
    (folder / "own-data" / "table.csv").write_text("id,image,question,answer,patient\n" + table)
    for index in range(2):
        write_dicom_series(folder / "dicom" / str(index), draw_patient(0, index, (8, 32, 32)))
    model, processor = make_model()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    export_llava(folder / "model", folder / "llava", drop_volume_tower=True)
    adapt(model).save_pretrained(str(folder / "adapter"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(_recipe(folder)))
    questions = [
        {"id": "effusion", "ask": "Is there a pleural effusion?", "kind": "yes-no", "finding": "pleural effusion"}
    ]
    protocol = {"name": "chest", "series": {"modality": "CT"}, "questions": questions, "results": {"send": ["sr"]}}
    (folder / "protocol.yaml").write_text(yaml.safe_dump(protocol))


def _recipe(folder: Path) -> dict[str, Any]:
    stage = {
        "name": "one",
        "train": {"llm": "full", "image_connector": "full"},
        "lr": 1e-3,
        "batch_size": 2,
        "max_steps": 6,
        "save_every": 2,
    }
    return {
        **_TRAINING, "data_root": str(folder), "data": {"d": {"path": "t.jsonl"}}, "stages": [stage],
        "run": {"progress": False, "device": "cpu"},
    }  # fmt: skip


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def commands(inputs: Path, out: Path) -> dict[str, list[str]]:
    """Return the arguments of every writing command: name -> arguments."""
    model, small = str(inputs / "model"), ["--max-new-tokens", "2", "--batch-size", "1"]
    key = ["--key-file", str(inputs / "key")]
    data = {
        "predict": ["predict", "--model", model, "--data", "r.jsonl", "--out", "o", *small],
        "score": ["score", "--model", model, "--data", "r.jsonl", "--out", "o", "--batch-size", "1"],
        "evaluate": ["evaluate", "--predictions", "p.jsonl", "--benchmark", "own", "--out", "o"],
        "data convert": ["data", "convert", "folder", "own-data", "--out", "o", "--image", "image", "--question", "question",
                         "--patient", "patient", *key],
        "data cache": ["data", "cache", "v.jsonl", "--geometry", "g.yaml", "--out", "o"],
        "data deidentify": ["data", "deidentify", "dicom", "--out", "o", *key],
        "checkpoint convert": ["checkpoint", "convert", "llava", "o"],
        "checkpoint merge": ["checkpoint", "merge", "adapter", "o", "--base", model],
        "checkpoint export": ["checkpoint", "export", model, "o", "--format", "llava-hf", "--drop-volume-tower"],
        "train": ["train", "recipe.yaml", "--out", "o", "--resume"],
        "study": ["study", "--in", "dicom/0", "--out", "o", "--protocol", "protocol.yaml", "--model", model],
    }  # fmt: skip
    places = {"o": out} | {name: inputs / name for name in ("r.jsonl", "p.jsonl", "own-data", "v.jsonl", "g.yaml", "dicom", "llava",
                                                            "adapter", "recipe.yaml", "dicom/0", "protocol.yaml")}  # fmt: skip
    return {name: [str(places.get(word, word)) for word in words] for name, words in data.items()}


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None] | None]:
    """Make the disk of `folder` small: a file system of `size` bytes if this process may mount one.

    Yields:
        what a process calls before it writes, where nothing can be mounted: files of more than 4 KiB cannot be written.
    """
    folder.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        yield small_files_only(4096)
        return
    try:
        yield None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def small_files_only(size: int = 1024) -> Callable[[], None]:
    """Return a function after which this process can write only `size` bytes to a file: the disk is full."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def content(out: Path) -> dict[str, str]:
    """Return the digests of all files of an output, without what tells times or random identifiers.

    DICOM objects, whose identifiers are random, are compared by their other attributes.
    """
    notes = [path for path in out.parent.glob(f"{out.name}.*") if path.is_file()]
    files = sorted(path for path in out.rglob("*") if path.is_file()) if out.is_dir() else [out]
    found: dict[str, str] = {}
    for path in [*files, *notes]:
        name = path.relative_to(out.parent).as_posix()
        if _VOLATILE_FILES.search(name) or not path.exists():
            continue
        if path.suffix == ".dcm" and "#" in path.name:
            found[f"object {_digest(_attributes(path))}"] = ""
        elif path.suffix == ".json":
            found[name] = _digest(json.dumps(_lasting(json.loads(path.read_text())), sort_keys=True).encode())
        else:
            found[name] = _digest(path.read_bytes())
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if not _VOLATILE_KEYS.search(key)}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def _attributes(path: Path) -> bytes:
    data = pydicom.dcmread(path)
    lasting = [
        f"{element.tag} {element.value!r}"
        for element in data.iterall()
        if element.VR not in ("UI", "DA", "TM", "DT", "SQ")
    ]
    return "\n".join(lasting).encode()
