"""Hostile files, folders and servers, each with the command that meets it: what must be refused in one line.

`ATTACKS` is the list; `tests/cli/test_attacks.py` runs it, `benchmarks/attacks.py` writes it down as a table.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import resource
import shutil
import signal
import socketserver
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import torch
import yaml
from PIL import Image
from pydicom.encaps import encapsulate
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, SiglipVisionConfig, SiglipVisionModel

from forked import start
from medmvl.evaluation.vlm3d import CT_RATE_FINDINGS
from medmvl.processing import ImageProcessor
from tiny import SIGLIP, make_tokenizer

#: Limits of one attack: CPU seconds, seconds without an end, bytes of memory beyond those at the start.
CPU_SECONDS, SECONDS, MEMORY = 30, 120, 2 * 2**30
HUGE = 10**9
#: text that a successful attack leaves in a file of this name
MARK = "attack-succeeded"


@dataclass(frozen=True)
class Place:
    """Files of an attack: the inputs of all (`writing.prepare`), and an empty folder of its own."""

    inputs: Path
    own: Path

    @property
    def mark(self) -> Path:
        return self.own / MARK


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        door: the command.
        text: what is attacked, for the table.
        prepare: writes the hostile input and returns the command's arguments.
        statuses: allowed exit statuses; 2 is a refusal.
    """

    door: str
    text: str
    prepare: Callable[[Place], list[Any]]
    statuses: tuple[int, ...] = (2,)


@dataclass
class Outcome:
    """How a command ended: exit status, CPU seconds, bytes of memory beyond the start, what it printed, and whether the mark is there."""

    status: int
    seconds: float
    memory: int
    said: str
    marked: bool


ATTACKS: list[Attack] = []


def _attack(door: str, text: str, statuses: tuple[int, ...] = (2,)) -> Callable[[Any], Any]:
    def register(prepare: Callable[[Place], list[Any]]) -> Callable[[Place], list[Any]]:
        ATTACKS.append(Attack(door, text, prepare, statuses))
        return prepare

    return register


def run(attack: Attack, place: Place) -> Outcome:
    """Run the command of an attack in a fork of this process, which has imported everything, with limits."""
    place.own.mkdir(parents=True)
    log = place.own / "log.txt"
    child = start(lambda: _prepared(attack, place), log, _limit_cpu)
    before, end = _memory(), time.monotonic() + SECONDS
    while not (found := os.wait4(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)
    _, status, usage = found
    said = log.read_text(errors="replace") if log.exists() else ""
    seconds, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 - before
    return Outcome(os.waitstatus_to_exitcode(status), seconds, memory, said, place.mark.exists())


def fault(attack: Attack, outcome: Outcome) -> str:
    """Return what is wrong with an outcome, or ""."""
    lines = [line for line in outcome.said.splitlines() if line.startswith("medmvl: ")]
    if outcome.marked:
        return "it succeeded"
    if outcome.status not in attack.statuses:
        return f"status {outcome.status}: {outcome.said[-600:]}"
    if "Traceback" in outcome.said or "This is a bug" in outcome.said or len(lines) > 1:
        return f"more than one line: {outcome.said[-600:]}"
    if outcome.memory > MEMORY:
        return f"{outcome.memory / 2**20:.0f} MiB of memory"
    return ""


def _prepared(attack: Attack, place: Place) -> list[Any]:
    """Enter the attack's own folder, write its input and return the command's arguments."""
    os.chdir(place.own)
    os.environ["MEDMVL_CACHE"] = str(place.own / "cache")
    return attack.prepare(place)


def _limit_cpu() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# --- inputs -----------------------------------------------------------------------------------------------------------


def _folder(place: Place, source: str) -> Path:
    return Path(shutil.copytree(place.inputs / source, place.own / "folder"))


def _edited(folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    settings = json.loads((folder / file).read_text())
    change(settings)
    (folder / file).write_text(json.dumps(settings))
    return folder


def _text_config(place: Place, source: str, **changes: Any) -> Path:
    return _edited(_folder(place, source), "config.json", lambda config: config["text_config"].update(changes))


def _pipe(folder: Path, file: str) -> Path:
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    return folder


def _ask(place: Place, folder: Path) -> list[Any]:
    return ["ask", "--model", folder, "--image", place.inputs / "a.png", "--max-new-tokens", "2", "What?"]


def _convert(place: Place, folder: Path) -> list[Any]:
    return ["checkpoint", "convert", folder, place.own / "out"]


def _merge(place: Place, **changes: Any) -> list[Any]:
    folder = _edited(_folder(place, "adapter"), "adapter_config.json", lambda config: config.update(changes))
    return ["checkpoint", "merge", folder, place.own / "out", "--base", place.inputs / "model"]


def _template(place: Place, text: str) -> list[Any]:
    folder = _folder(place, "model")
    (folder / "chat_template.jinja").write_text(text)
    return _ask(place, folder)


def _train_from(place: Place, part: str, folder: Path) -> list[Any]:
    recipe = yaml.safe_load((place.inputs / "recipe.yaml").read_text())
    if part == "llm":
        recipe["model"]["llm"] = {"init_from": str(folder)}
    else:
        recipe["model"]["image"]["encoder"] = {"name": "siglip", "init_from": str(folder)}
    (place.own / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return ["train", place.own / "recipe.yaml", "--out", place.own / "run"]


def _llm(place: Place, **changes: Any) -> Path:
    folder, tokenizer = place.own / "llm", make_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_key_value_heads=1, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return _edited(folder, "config.json", lambda settings: settings.update(changes))


def _encoder(place: Place, **changes: Any) -> Path:
    folder = place.own / "encoder"
    config = SiglipVisionConfig(**{name: value for name, value in SIGLIP.items() if name != "model_type"})
    SiglipVisionModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(ImageProcessor.for_size(32, 32).settings))
    return _edited(folder, "config.json", lambda settings: settings.update(changes))


def _records(place: Place, **changes: Any) -> Path:
    shutil.copy(place.inputs / "a.png", place.own)
    turns = [{"from": "human", "value": "<image>\nIs there x?"}]
    record = {"id": "r0", "conversations": turns, "image": ["a.png"], "answer": "yes", **changes}
    (place.own / "records.jsonl").write_text(json.dumps(record) + "\n")
    return place.own / "records.jsonl"


def _read_image(place: Place, name: str) -> list[Any]:
    return ["data", "check", _records(place, image=[name]), "--read"]


def _read_volume(place: Place, name: str) -> list[Any]:
    turns = [{"from": "human", "value": "<image3d>\n?"}]
    return ["data", "check", _records(place, image=[], image3d=[name], conversations=turns), "--read"]


def _predict(place: Place, image: str) -> list[Any]:
    out = ["--out", place.own / "out.jsonl", "--max-new-tokens", "2"]
    return ["predict", "--model", place.inputs / "model", "--data", _records(place, image=[image]), *out]


def _table(place: Place, content: bytes, name: str = "table.csv") -> list[Any]:
    source = place.own / "source"
    source.mkdir()
    shutil.copy(place.inputs / "a.png", source)
    (source / name).write_bytes(content)
    columns = ["--image", "image", "--question", "question", "--key-file", place.own / "key"]
    return ["data", "convert", "folder", source, "--out", place.own / "out", *columns]


def _serve(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> str:
    """Start a server on this machine in a thread and return its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET  # noqa: N815 - its name in the library

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def _reply(handler: http.server.BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    with contextlib.suppress(OSError):  # the client has gone
        handler.wfile.write(body)


def _endpoint(place: Place, answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> list[Any]:
    where = ["--endpoint", f"{_serve(answer)}/v1", "--served-model", "m"]
    return ["evaluate", *where, "--benchmark", "own", "--data-root", _records(place), "--out", place.own / "out"]


def _dicomweb(place: Place, body: bytes, kind: str = "application/dicom+json", **headers: str) -> list[Any]:
    address = _serve(lambda handler: _reply(handler, body, Content_Type=kind, **headers))
    model = ["--protocol", place.inputs / "protocol.yaml", "--model", place.inputs / "model"]
    return ["dicomweb", "--url", address, "--study", "1.2.3", *model]


def _promise(path: Path, shape: tuple[int, int, int], size: int, kind: int = 4) -> None:
    """Write a nii.gz with a header for `shape` and a number of bytes of zeros.

    Args:
        kind: NIfTI's code of the type of values; 4 is int16, 128 is RGB.
    """
    header = bytearray(352)
    header[:4], header[344:348] = struct.pack("<i", 348), b"n+1\0"
    header[40:56], header[70:74] = struct.pack("<8h", 3, *shape, 1, 1, 1, 1), struct.pack("<2h", kind, 16)
    header[108:112] = struct.pack("<f", 352.0)
    with gzip.open(path, "wb") as file:
        file.write(header)
        for begin in range(0, size, 10**7):
            file.write(bytes(min(10**7, size - begin)))


def _yaml(place: Place, text: str) -> Path:
    (place.own / "hostile.yaml").write_text(text)
    return place.own / "hostile.yaml"


_DEEP = "[" * 100_000 + "]" * 100_000
_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(10)
)


# --- model folders ----------------------------------------------------------------------------------------------------


@_attack("ask", "config.json promises 10^9 layers")
def _(place: Place) -> list[Any]:
    return _ask(place, _text_config(place, "model", num_hidden_layers=HUGE))


@_attack("ask", "the same, weights in a .bin file")
def _(place: Place) -> list[Any]:
    folder = _text_config(place, "model", num_hidden_layers=HUGE)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return _ask(place, folder)


@_attack("ask", "config.json promises a vocabulary of 10^12")
def _(place: Place) -> list[Any]:
    return _ask(place, _text_config(place, "model", vocab_size=10**12))


@_attack("ask", "config.json with 100,000 nested brackets")
def _(place: Place) -> list[Any]:
    folder = _folder(place, "model")
    (folder / "config.json").write_text('{"model_type": "medmvl", "x": ' + _DEEP + "}")
    return _ask(place, folder)


@_attack("ask", "config.json is a pipe that nobody writes to")
def _(place: Place) -> list[Any]:
    return _ask(place, _pipe(_folder(place, "model"), "config.json"))


@_attack("ask", "the weights are a pipe")
def _(place: Place) -> list[Any]:
    return _ask(place, _pipe(_folder(place, "model"), "model.safetensors"))


@_attack("ask", "config.json is a link to /dev/zero")
def _(place: Place) -> list[Any]:
    folder = _folder(place, "model")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    return _ask(place, folder)


@_attack("checkpoint inspect", "config.json is a link to itself")
def _(place: Place) -> list[Any]:
    folder = _folder(place, "model")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    return ["checkpoint", "inspect", folder]


@_attack("ask", "a safetensors header of 2^60 bytes")
def _(place: Place) -> list[Any]:
    folder = _folder(place, "model")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + data[8:])
    return _ask(place, folder)


@_attack("checkpoint inspect", "a safetensors header with a tensor of 2^64 values")
def _(place: Place) -> list[Any]:
    folder = _folder(place, "model")
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return ["checkpoint", "inspect", folder]


@_attack("ask", "a shard index names ../../etc/passwd")
def _(place: Place) -> list[Any]:
    folder = _folder(place, "model")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "../../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return _ask(place, folder)


@_attack("ask", "a .bin file is a pickle that runs a program")
def _(place: Place) -> list[Any]:
    folder = _folder(place, "model")
    (folder / "model.safetensors").unlink()
    torch.save({"a": _Run(f"touch {place.mark}")}, folder / "pytorch_model.bin")
    return _ask(place, folder)


@_attack("ask", "the chat template doubles a text 60 times")
def _(place: Place) -> list[Any]:
    doubling = "{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    return _template(place, "{% set n = namespace(x='a') %}" + doubling + "{{ n.x }}")


@_attack("ask", "the chat template makes a text of 10^11 characters in one step")
def _(place: Place) -> list[Any]:
    return _template(place, "{{ ('a' * 99999) * 999999 }}")


@_attack("ask", "the chat template pads a text to 10^10 characters")
def _(place: Place) -> list[Any]:
    return _template(place, "{{ 'a' | center(10000000000) }}")


@_attack("ask", "the chat template reaches for Python's os module")
def _(place: Place) -> list[Any]:
    return _template(place, "{{ lipsum.__globals__['os'].popen('touch " + str(place.mark) + "').read() }}")


@_attack("ask", "the chat template includes /etc/passwd")
def _(place: Place) -> list[Any]:
    return _template(place, "{% include '/etc/passwd' %}")


@_attack("ask", "processor_config.json resizes images to 10^6 x 10^6")
def _(place: Place) -> list[Any]:
    size = {"height": 10**6, "width": 10**6}
    return _ask(
        place, _edited(_folder(place, "model"), "processor_config.json", lambda c: c["image"].update(size=size))
    )


@_attack("ask", "processor_config.json has 10^5 means")
def _(place: Place) -> list[Any]:
    means = [0.5] * 10**5
    return _ask(
        place, _edited(_folder(place, "model"), "processor_config.json", lambda c: c["image"].update(image_mean=means))
    )


@_attack("ask", "generation_config.json asks for 10^6 sequences")
def _(place: Place) -> list[Any]:
    folder = _folder(place, "model")
    (folder / "generation_config.json").write_text(json.dumps({"num_return_sequences": 10**6, "num_beams": 10**6}))
    return _ask(place, folder)


@_attack("ask", "model_type holds markup and terminal sequences")
def _(place: Place) -> list[Any]:
    change = {"model_type": "[red]x[/red]\x1b]0;name\x07"}
    return _ask(place, _edited(_folder(place, "model"), "config.json", lambda config: config.update(change)))


@_attack("checkpoint convert", "the vision config promises 10^9 layers")
def _(place: Place) -> list[Any]:
    change = {"num_hidden_layers": HUGE}
    return _convert(
        place, _edited(_folder(place, "llava"), "config.json", lambda config: config["vision_config"].update(change))
    )


@_attack("checkpoint convert", "the text config is another model's with 10^9 decoder layers")
def _(place: Place) -> list[Any]:
    return _convert(place, _text_config(place, "llava", model_type="bart", decoder_layers=HUGE, encoder_layers=HUGE))


@_attack("checkpoint convert", "the text config has 10^9 experts")
def _(place: Place) -> list[Any]:
    return _convert(place, _text_config(place, "llava", model_type="qwen2_moe", num_experts=HUGE))


@_attack("checkpoint convert", "the text config is 2^34 wide")
def _(place: Place) -> list[Any]:
    return _convert(place, _text_config(place, "llava", hidden_size=2**34))


@_attack("checkpoint convert", "a patch of 0 pixels")
def _(place: Place) -> list[Any]:
    change = {"patch_size": 0}
    return _convert(
        place, _edited(_folder(place, "llava"), "config.json", lambda config: config["vision_config"].update(change))
    )


@_attack("checkpoint convert", "preprocessor_config.json is a pipe")
def _(place: Place) -> list[Any]:
    return _convert(place, _pipe(_folder(place, "llava"), "preprocessor_config.json"))


@_attack("checkpoint merge", "an adapter of rank 10^9")
def _(place: Place) -> list[Any]:
    return _merge(place, r=HUGE)


@_attack("checkpoint merge", "an adapter lists 200,000 modules")
def _(place: Place) -> list[Any]:
    return _merge(place, target_modules=[f"q{i}" for i in range(200_000)])


@_attack("checkpoint merge", "lora_alpha is a text")
def _(place: Place) -> list[Any]:
    return _merge(place, lora_alpha="x")


@_attack("checkpoint merge", "an adapter names a URL as its base")
def _(place: Place) -> list[Any]:
    return _merge(place, base_model_name_or_path="http://169.254.169.254/x")[:-2]


@_attack("checkpoint export", "config.json promises 10^9 layers")
def _(place: Place) -> list[Any]:
    folder = _text_config(place, "model", num_hidden_layers=HUGE)
    return ["checkpoint", "export", folder, place.own / "out", "--format", "gguf"]


@_attack("train", "init_from: an LLM whose config promises 10^9 layers")
def _(place: Place) -> list[Any]:
    return _train_from(place, "llm", _llm(place, num_hidden_layers=HUGE))


@_attack("train", "init_from: an LLM whose config is 2^20 wide")
def _(place: Place) -> list[Any]:
    return _train_from(place, "llm", _llm(place, hidden_size=2**20, head_dim=8))


@_attack("train", "init_from: an LLM whose config.json is a pipe")
def _(place: Place) -> list[Any]:
    return _train_from(place, "llm", _pipe(_llm(place), "config.json"))


@_attack("train", "init_from: an encoder whose config promises 10^9 layers")
def _(place: Place) -> list[Any]:
    return _train_from(place, "image", _encoder(place, num_hidden_layers=HUGE))


@_attack("train", "init_from: an encoder for images of 2^20 x 2^20")
def _(place: Place) -> list[Any]:
    return _train_from(place, "image", _encoder(place, image_size=2**20))


# --- recipes, protocols and other YAML --------------------------------------------------------------------------------


@_attack("train", "a recipe whose aliases expand to 10^11 values")
def _(place: Place) -> list[Any]:
    return ["train", _yaml(place, _LAUGHS), "--dry-run"]


@_attack("train", "a recipe with 100,000 nested brackets")
def _(place: Place) -> list[Any]:
    return ["train", _yaml(place, "a: " + _DEEP), "--dry-run"]


@_attack("train", "a recipe with a tag that runs a program")
def _(place: Place) -> list[Any]:
    return ["train", _yaml(place, f"name: !!python/object/apply:os.system ['touch {place.mark}']\n")]


@_attack("train", "the recipe is a pipe")
def _(place: Place) -> list[Any]:
    return ["train", _pipe(place.own, "recipe.yaml") / "recipe.yaml"]


@_attack("study", "a protocol whose aliases expand to 10^11 values")
def _(place: Place) -> list[Any]:
    where = ["--in", place.inputs / "dicom" / "0", "--out", place.own / "out", "--model", place.inputs / "model"]
    return ["study", *where, "--protocol", _yaml(place, _LAUGHS)]


@_attack("compare", "a comparison whose aliases expand to 10^11 values")
def _(place: Place) -> list[Any]:
    return ["compare", _yaml(place, _LAUGHS), "--out", place.own / "out"]


@_attack("checkpoint card", "statements whose aliases expand to 10^11 values")
def _(place: Place) -> list[Any]:
    return ["checkpoint", "card", _folder(place, "model"), "--statements", _yaml(place, _LAUGHS)]


# --- records and files of pixels --------------------------------------------------------------------------------------


@_attack("predict", "a record names ../../etc/passwd")
def _(place: Place) -> list[Any]:
    return _predict(place, "../../../../../../etc/passwd")


@_attack("predict", "a record names a URL of this machine")
def _(place: Place) -> list[Any]:
    def note(handler: http.server.BaseHTTPRequestHandler) -> None:
        place.mark.touch()
        _reply(handler, b"x")

    return _predict(place, f"{_serve(note)}/a.png")


@_attack("predict", "a record names file:///etc/passwd")
def _(place: Place) -> list[Any]:
    return _predict(place, "file:///etc/passwd")


@_attack("data check", "a PostScript program named .png, for which Pillow starts Ghostscript")
def _(place: Place) -> list[Any]:
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({place.mark}) (w) file closefile\n"
    (place.own / "b.png").write_text(program)
    return _read_image(place, "b.png")


@_attack("data check", "a PNG of 60,000 x 60,000 pixels")
def _(place: Place) -> list[Any]:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 10**6)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    (place.own / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return _read_image(place, "b.png")


@_attack("data check", "a PNG whose text chunk expands to 100 MB")
def _(place: Place) -> list[Any]:
    Image.new("L", (8, 8)).save(place.own / "b.png")
    data = (place.own / "b.png").read_bytes()
    text = b"k\0\0" + zlib.compress(b"a" * 10**8)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    (place.own / "b.png").write_bytes(data[:33] + chunk + data[33:])
    return _read_image(place, "b.png")


@_attack("data check", "an npz whose array expands to 1 TB")
def _(place: Place) -> list[Any]:
    header = b"{'descr': '<i2', 'fortran_order': False, 'shape': (500000, 1000, 1000), }".ljust(117) + b"\n"
    with zipfile.ZipFile(place.own / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 10**7)
    return _read_volume(place, "b.npz")


@_attack("data check", "an npy of objects, a pickle that runs a program")
def _(place: Place) -> list[Any]:
    np.save(place.own / "b.npy", np.array([_Run(f"touch {place.mark}")], dtype=object), allow_pickle=True)
    return _read_volume(place, "b.npy")


@_attack("data check", "a nii.gz that expands to 200 MB and promises 60 GB")
def _(place: Place) -> list[Any]:
    _promise(place.own / "b.nii.gz", (32000, 32000, 32), 2 * 10**8)
    return _read_volume(place, "b.nii.gz")


@_attack("data check", "a DICOM file of 65,535 x 65,535 pixels and 2^31 frames")
def _(place: Place) -> list[Any]:
    data = _slice(place)
    data.Rows = data.Columns = 65_535
    data.NumberOfFrames = str(2**31 - 1)
    data.save_as(place.own / "b.dcm")
    return _read_image(place, "b.dcm")


@_attack("data check", "a DICOM file with 100,000 empty fragments")
def _(place: Place) -> list[Any]:
    data = _slice(place)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    data.PixelData = encapsulate([b"\0\0"] * 100_000)
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.save_as(place.own / "b.dcm")
    return _read_image(place, "b.dcm")


@_attack("data check", "a DICOM file with 20,000 nested sequences")
def _(place: Place) -> list[Any]:
    data = _slice(place)
    del data.PixelData
    data.save_as(place.own / "b.dcm")
    begin = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 2**32 - 1) + struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1)
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    with (place.own / "b.dcm").open("ab") as file:
        file.write(begin * 20_000 + end * 20_000)
    return _read_image(place, "b.dcm")


@_attack("data check", "two slices 10^9 mm apart, with --gaps fill")
def _(place: Place) -> list[Any]:
    folder = place.own / "series"
    folder.mkdir()
    for index in range(3):
        data = _slice(place, index)
        data.ImagePositionPatient = [0, 0, index + 10**9 * (index == 2)]
        data.save_as(folder / f"{index}.dcm")
    return [*_read_volume(place, "series"), "--gaps", "fill"]


@_attack("data check", "a DICOM folder with a pipe, a link to /dev/zero and a link to itself", statuses=(0, 2))
def _(place: Place) -> list[Any]:
    folder = Path(shutil.copytree(place.inputs / "dicom" / "0", place.own / "series"))
    os.mkfifo(folder / "pipe.dcm")
    (folder / "zero.dcm").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder)
    return _read_volume(place, "series")


@_attack("data check", "a volume that is a link to /dev/zero")
def _(place: Place) -> list[Any]:
    (place.own / "b.nii.gz").symlink_to("/dev/zero")
    return _read_volume(place, "b.nii.gz")


@_attack("predict", "the file of records is a pipe")
def _(place: Place) -> list[Any]:
    os.mkfifo(place.own / "records.jsonl")
    where = ["--data", place.own / "records.jsonl", "--out", place.own / "out"]
    return ["predict", "--model", place.inputs / "model", *where]


@_attack("data check", "a record with 100,000 nested brackets")
def _(place: Place) -> list[Any]:
    (place.own / "records.jsonl").write_text('{"id": ' + _DEEP + "}\n")
    return ["data", "check", place.own / "records.jsonl"]


@_attack("data check", "a record with an integer of 10^6 digits")
def _(place: Place) -> list[Any]:
    (place.own / "records.jsonl").write_text('{"id": ' + "9" * 10**6 + "}\n")
    return ["data", "check", place.own / "records.jsonl"]


@_attack("data convert", "a csv.gz with a line of 200 MB in 200 kB")
def _(place: Place) -> list[Any]:
    return _table(place, gzip.compress(b"id,image,question,answer\n" + b"\0" * 2 * 10**8), "table.csv.gz")


@_attack("data convert", "a table names ../../etc/passwd")
def _(place: Place) -> list[Any]:
    return _table(place, b"id,image,question,answer\nq,../../../../../../etc/passwd,Is it?,yes\n")


@_attack("data convert", "a table names a PostScript program", statuses=(0, 2))
def _(place: Place) -> list[Any]:
    arguments = _table(place, b"id,image,question,answer\nq,b.png,Is it?,yes\n")
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({place.mark}) (w) file closefile\n"
    (place.own / "source" / "b.png").write_text(program)
    return arguments


# --- challenges -------------------------------------------------------------------------------------------------------


def _score_masks(place: Place, write: Callable[[Path], object], name: str = "ours") -> list[Any]:
    """Return the arguments that score a mask of 4 x 4 x 4 voxels; `write` replaces it among ours or the references."""
    for folder in ("ours", "masks"):
        (place.own / folder).mkdir()
        _save_mask(place.own / folder / "a.nii.gz", np.ones((4, 4, 4), np.uint8))
    write(place.own / name / "a.nii.gz")
    return ["challenge", "rexgroundingct", "--predictions", place.own / "ours", "--masks", place.own / "masks"]


def _save_mask(path: Path, values: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def _score_probabilities(place: Place, values: str) -> list[Any]:
    names = ",".join(f'"{name}"' for name in CT_RATE_FINDINGS)
    (place.own / "labels.csv").write_text(f"VolumeName,{names}\na.nii.gz{',1' * 18}\n")
    (place.own / "p.json").write_text(f'[{{"input_image_name": "a", "probabilities": {values}}}]')
    return ["challenge", "vlm3d", "--labels", place.own / "labels.csv", "--probabilities", place.own / "p.json"]


@_attack("challenge rexgroundingct", "a mask that promises 60 GB")
def _(place: Place) -> list[Any]:
    return _score_masks(place, lambda path: _promise(path, (32000, 32000, 32), 10**7))


@_attack("challenge rexgroundingct", "a reference mask is a pipe")
def _(place: Place) -> list[Any]:
    return _score_masks(place, lambda path: _pipe(path.parent, path.name), "masks")


@_attack("challenge rexgroundingct", "a mask of complex numbers")
def _(place: Place) -> list[Any]:
    return _score_masks(place, lambda path: _save_mask(path, np.ones((4, 4, 4), np.complex64)))


@_attack("challenge rexgroundingct", "a mask of colors")
def _(place: Place) -> list[Any]:
    return _score_masks(place, lambda path: _promise(path, (4, 4, 4), 192, kind=128))


@_attack("challenge rexgroundingct", "a heat map of NaN")
def _(place: Place) -> list[Any]:
    return _score_masks(place, lambda path: _save_mask(path, np.full((4, 4, 4), np.nan, np.float32)))


@_attack("challenge rexgroundingct", "a mask and its reference have 27,000 specks each")
def _(place: Place) -> list[Any]:
    specks = np.zeros((60, 60, 60), np.uint8)
    specks[::2, ::2, ::2] = 1
    _score_masks(place, lambda path: _save_mask(path, specks))
    shutil.copy(place.own / "ours" / "a.nii.gz", place.own / "masks")
    return ["challenge", "rexgroundingct", "--predictions", place.own / "ours", "--masks", place.own / "masks"]


@_attack("challenge vlm3d", "probabilities are NaN")
def _(place: Place) -> list[Any]:
    return _score_probabilities(place, "[" + ",".join(["NaN"] * 18) + "]")


@_attack("challenge vlm3d", "probabilities are objects and numbers of 400 digits")
def _(place: Place) -> list[Any]:
    return _score_probabilities(place, "[" + ",".join(["{}", "1" + "0" * 400] * 9) + "]")


@_attack("challenge vlm3d", "an object of 200,000 keys, one of them twice")
def _(place: Place) -> list[Any]:
    return _score_probabilities(place, "{" + ",".join(f'"{i}": 0' for i in [*range(200_000), 199_999]) + "}")


@_attack("challenge vlm3d", "a report of 10^7 characters")
def _(place: Place) -> list[Any]:
    arguments = _score_probabilities(place, "[]")[:4]
    (place.own / "reports.csv").write_text("VolumeName,Findings_EN,Impressions_EN\na.nii.gz,x,y\n")
    (place.own / "r.json").write_text(json.dumps([{"input_image_name": "a", "report": "no effusion. " * 10**6}]))
    return [*arguments, "--reports", place.own / "r.json", "--references", place.own / "reports.csv"]


@_attack("challenge vlm3d", "the list of other body parts is a pipe")
def _(place: Place) -> list[Any]:
    arguments = _score_probabilities(place, "[" + ",".join(["0.5"] * 18) + "]")
    (place.own / "reports.csv").write_text("VolumeName,Findings_EN,Impressions_EN\na.nii.gz,x,y\n")
    os.mkfifo(place.own / "list")
    return [*arguments, "--references", place.own / "reports.csv", "--not-chest", place.own / "list"]


# --- calibrations, shards ---------------------------------------------------------------------------------------------


def _calibrated(place: Place, temperature: str) -> list[Any]:
    folder = _folder(place, "model")
    (folder / "calibration.json").write_text(f'{{"format": 1, "temperature": {temperature}}}')
    return [*_ask(place, folder), "--confidence"]


@_attack("ask", "calibration.json: a temperature of NaN")
def _(place: Place) -> list[Any]:
    return _calibrated(place, "NaN")


@_attack("ask", "calibration.json: a temperature of 400 digits")
def _(place: Place) -> list[Any]:
    return _calibrated(place, "1" + "0" * 400)


@_attack("ask", "calibration.json: a temperature in brackets, 100,000 of them")
def _(place: Place) -> list[Any]:
    return _calibrated(place, _DEEP)


# --- servers that are asked -------------------------------------------------------------------------------------------


@_attack("evaluate --endpoint", "the endpoint answers with 200,000 brackets")
def _(place: Place) -> list[Any]:
    return _endpoint(place, lambda handler: _reply(handler, _DEEP.encode()))


@_attack("evaluate --endpoint", "the endpoint answers with 40 MB of blanks")
def _(place: Place) -> list[Any]:
    return _endpoint(place, lambda handler: _reply(handler, b" " * 4 * 10**7))


@_attack("evaluate --endpoint", "the endpoint sends the request and its key on to another host")
def _(place: Place) -> list[Any]:
    def note(handler: http.server.BaseHTTPRequestHandler) -> None:
        place.mark.touch()
        _reply(handler, b"{}")

    os.environ["MEDMVL_ENDPOINT_KEY"] = "key-of-the-user"
    other = _serve(note).replace("127.0.0.1", "localhost")
    return _endpoint(place, lambda handler: _reply(handler, b"", 302, Location=f"{other}/x"))


@_attack("evaluate --endpoint", "the answer is an object instead of a text")
def _(place: Place) -> list[Any]:
    body = json.dumps({"choices": [{"message": {"content": {"a": 1}}}]}).encode()
    return _endpoint(place, lambda handler: _reply(handler, body))


@_attack("dicomweb", "the service answers with 200,000 brackets")
def _(place: Place) -> list[Any]:
    return _dicomweb(place, _DEEP.encode())


@_attack("dicomweb", "the list of series holds numbers and null")
def _(place: Place) -> list[Any]:
    return _dicomweb(place, b'[5, "a", null]')


@_attack("dicomweb", "a series UID is ../../x")
def _(place: Place) -> list[Any]:
    series = {"0020000E": {"vr": "UI", "Value": ["../../x"]}, "00080060": {"vr": "CS", "Value": ["CT"]}}
    return _dicomweb(place, json.dumps([series]).encode())


@_attack("dicomweb", "an answer of 300 kB expands to 300 MB")
def _(place: Place) -> list[Any]:
    return _dicomweb(place, gzip.compress(b" " * 3 * 10**8), Content_Encoding="gzip")


@_attack("dicomweb", "the service sends the request on to file:///etc/passwd")
def _(place: Place) -> list[Any]:
    address = _serve(lambda handler: _reply(handler, b"", 302, Location="file:///etc/passwd"))
    model = ["--protocol", place.inputs / "protocol.yaml", "--model", place.inputs / "model"]
    return ["dicomweb", "--url", address, "--study", "1.2.3", *model]


# --- outputs ----------------------------------------------------------------------------------------------------------


def _evaluate(place: Place, out: object) -> list[Any]:
    return ["evaluate", "--predictions", place.inputs / "p.jsonl", "--benchmark", "own", "--out", out]


@_attack("evaluate", "--out is /dev/full")
def _(place: Place) -> list[Any]:
    return _evaluate(place, "/dev/full")


@_attack("predict", "--out is a pipe")
def _(place: Place) -> list[Any]:
    os.mkfifo(place.own / "out.jsonl")
    return _predict(place, "a.png")


@_attack("predict", "the lock next to --out is a link to a file of the user")
def _(place: Place) -> list[Any]:
    (place.own / "precious").write_text("kept")
    (place.own / ".out.jsonl.lock").symlink_to("precious")
    return _predict(place, "a.png")


@_attack("predict", "the lock next to --out is a pipe")
def _(place: Place) -> list[Any]:
    os.mkfifo(place.own / ".out.jsonl.lock")
    return _predict(place, "a.png")


class _Run:
    """Unpickled, it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def _slice(place: Place, index: int = 0) -> pydicom.Dataset:
    return pydicom.dcmread(sorted((place.inputs / "dicom" / "0").rglob("*.dcm"))[index])
