"""Load on `medmvl serve`: 1, 8 and 32 clients with images and volumes, then a soak with faults.

    python benchmarks/serving_load.py [--seconds 20] [--soak 60] [--threads 1] [--out FILE.md]
    python benchmarks/serving_load.py --seconds 60 --soak 900           # the long form: 15 minutes of soak

Writes a model with random weights (a Qwen2 of 8 layers and width 384, both towers, 64 visual tokens, tokenizer by code) and synthetic
studies, starts `medmvl serve` on a free port of 127.0.0.1, and sends greedy questions about 8 images and 4 volumes, 5 questions each, with
answers of 32 tokens. Half of the requests name their study by uuid. Each answer's token ids are compared with those that the
Predictor gives in this process, so a lost, exchanged or wrong answer is counted. During the soak, clients hang up in the middle, send
garbage, and the processes that read uploads are killed, while 16 clients ask on. It stops by itself.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from medmvl.imaging import geometry
from medmvl.inference import GenerationOptions, Predictor
from medmvl.inference.questions import question
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.processing import ImageProcessor, MedMVLProcessor, VolumeProcessor

TOKENS = 32
TEXTS = [f"Question {number}: is there a finding, and on which side?" for number in range(5)]
LLM = {
    "model_type": "qwen2",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
}
VOLUME = (8, 64, 64)


def make_model(folder: Path) -> None:
    """Write the checkpoint folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    torch.manual_seed(0)
    encoder = {"name": "siglip", "vision_config": VISION}
    slices = {"name": "slicewise", "slices": VOLUME[0], "encoder": encoder}
    model = MedMVLForConditionalGeneration.from_parts(
        {**LLM, "vocab_size": len(fast)},
        image=(encoder, "mlp2x_gelu"),
        volume=(slices, {"pooling": {"name": "average"}, "projector": "mlp2x_gelu"}),
    )
    processor = MedMVLProcessor.from_parts(
        model.config,
        fast,
        image=ImageProcessor.for_size(64, 64),
        volume=VolumeProcessor(geometry("medm-vl-ct", size=VOLUME)),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@dataclass
class Study:
    """A study on disk and how a request names it."""

    kind: str
    path: Path

    def part(self, by_name: bool) -> dict[str, Any]:
        """Return the content part; by its uuid alone, or with its data."""
        name = f"{self.kind}_url"
        if by_name:
            return {"type": name, name: None, "uuid": self.path.name}
        data = base64.b64encode(self.path.read_bytes()).decode()
        url = {"url": f"data:application/octet-stream;base64,{data}"}
        return {"type": name, name: url, "uuid": self.path.name}


def make_studies(folder: Path) -> list[Study]:
    """Write 8 images and 4 volumes."""
    rng = np.random.default_rng(0)
    studies = []
    for number in range(8):
        path = folder / f"image{number}.png"
        Image.fromarray(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(path)
        studies.append(Study("image", path))
    for number in range(4):
        path = folder / f"volume{number}.npy"
        np.save(path, rng.integers(-1000, 1000, (16, 96, 96)).astype(np.int16))
        studies.append(Study("volume", path))
    return studies


def expected_answers(folder: Path, studies: list[Study]) -> dict[tuple[str, str], list[int]]:
    """Return the Predictor's token ids of every question about every study."""
    predictor = Predictor.from_pretrained(folder)
    found = {}
    for study in studies:
        images, volumes = ([str(study.path)], []) if study.kind == "image" else ([], [str(study.path)])
        for text in TEXTS:
            encoded = predictor.encode(question(text, len(images), len(volumes)), images, volumes)
            answer = predictor.generate([encoded], GenerationOptions(max_new_tokens=TOKENS))[0]
            found[study.path.name, text] = answer.token_ids
    return found


class Server:
    """The command, and what its process uses."""

    def __init__(self, folder: Path, audit: Path, threads: int) -> None:
        command = [sys.executable, "-m", "medmvl", "serve", "--model", str(folder), "--name", "load", "--port", "0"]
        command += ["--audit", str(audit), "--limit", "per_key=128"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if not found:
            raise SystemExit(f"the server did not start: {line!r}")
        self.address, self.port = found[0], int(found[1])

    def resident_mib(self) -> float:
        """Return the memory of the server's own process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    def cpu_seconds(self) -> float:
        """Return the CPU time that the server's own process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def readers(self) -> list[int]:
        """Return the ids of the reader processes: grandchildren, by the fork server."""
        parents = {int(p.name): _parent(p) for p in Path("/proc").iterdir() if p.name.isdecimal()}
        children = [pid for pid, parent in parents.items() if parent == self.process.pid]
        return [pid for pid, parent in parents.items() if parent in children]

    def stop(self) -> int:
        """End it by SIGTERM; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@dataclass
class Tally:
    """What happened in one phase."""

    right: int = 0
    wrong: int = 0
    lost: int = 0
    first: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rates(self) -> tuple[float, float]:
        """Right answers per second, and per CPU second of the server."""
        return self.right / self.seconds, self.right / self.cpu

    def row(self, name: str, base: tuple[float, float]) -> str:
        """Return a line of the table."""
        (rate, per_cpu), (p50, p95) = self.rates, np.percentile(self.first, [50, 95])
        return (
            f"| {name} | {self.right} | {self.lost} | {self.wrong} | {rate:.2f} | {rate / base[0]:.2f} | {per_cpu:.2f} | "
            f"{per_cpu / base[1]:.2f} | {p50:.3f} | {p95:.3f} |"
        )


def ask(client: httpx.Client, server: Server, study: Study, text: str, by_name: bool) -> tuple[list[int] | None, float]:
    """Return the token ids of an answer, and the seconds until its first piece; streams, as a viewer would."""
    body = {"model": "load", "max_tokens": TOKENS, "stream": True}
    body["messages"] = [{"role": "user", "content": [study.part(by_name), {"type": "text", "text": text}]}]
    start, first = time.monotonic(), 0.0
    ids: list[int] = []
    with client.stream(
        "POST", f"{server.address}/v1/chat/completions", json=body | {"return_token_ids": True}
    ) as reply:
        if reply.status_code == 404 and by_name:
            reply.read()
            return ask(client, server, study, text, by_name=False)
        if reply.status_code != 200:
            print(f"lost: status {reply.status_code}", flush=True)
            return None, 0.0
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return None, 0.0
            choice = event["choices"][0]
            if choice.get("token_ids"):
                first = first or time.monotonic() - start
                ids += choice["token_ids"]
    return ids, first


def work(server: Server, studies: list[Study], expected: dict[tuple[str, str], list[int]], tally: Tally, until: float,
         seed: int) -> None:  # fmt: skip
    """Ask until the time is over."""
    draw = random.Random(seed)
    with httpx.Client(timeout=120) as client:
        while time.monotonic() < until:
            study, text = draw.choice(studies), draw.choice(TEXTS)
            try:
                ids, first = ask(client, server, study, text, draw.random() < 0.5)
            except httpx.HTTPError as error:
                print(f"lost: {type(error).__name__}", flush=True)
                ids, first = None, 0.0
            with tally.lock:
                if ids is None:
                    tally.lost += 1
                elif ids == expected[study.path.name, text]:
                    tally.right += 1
                    tally.first.append(first)
                else:
                    tally.wrong += 1


def phase(server: Server, studies: list[Study], expected: dict[tuple[str, str], list[int]], clients: int, seconds: float,
          faults: bool = False) -> tuple[Tally, list[float]]:  # fmt: skip
    """Run clients for some seconds; returns what happened, and the memory of the server over time."""
    tally, memory = Tally(), []
    start, cpu = time.monotonic(), server.cpu_seconds()
    until = start + seconds
    threads = [
        threading.Thread(target=work, args=(server, studies, expected, tally, until, number))
        for number in range(clients)
    ]
    if faults:
        threads.append(threading.Thread(target=break_things, args=(server, studies, tally, until)))
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        time.sleep(min(2.0, max(0.1, seconds / 10)))
        memory.append(server.resident_mib())
    for thread in threads:
        thread.join()
    tally.seconds, tally.cpu = time.monotonic() - start, server.cpu_seconds() - cpu
    return tally, memory


def break_things(server: Server, studies: list[Study], tally: Tally, until: float) -> None:
    """Hang up, send garbage and kill readers, one after the other."""
    draw = random.Random(1)
    while time.monotonic() < until - 1:
        kind = draw.choice(["hang-up", "hang-up while streaming", "garbage", "half a request", "killed reader"])
        if kind == "killed reader":
            readers = server.readers()
            if readers:
                os.kill(draw.choice(readers), signal.SIGKILL)
        else:
            _bad_client(server, studies, kind, draw)
        with tally.lock:
            tally.faults[kind] += 1
        time.sleep(0.5)


def _bad_client(server: Server, studies: list[Study], kind: str, draw: random.Random) -> None:
    content: list[dict[str, Any]] = [draw.choice(studies).part(False), {"type": "text", "text": "?"}]
    if kind == "garbage":
        garbage = base64.b64encode(draw.randbytes(5000)).decode()
        name = draw.choice(["image_url", "volume_url"])
        content[0] = {"type": name, name: {"url": f"data:;base64,{garbage}"}}
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 500,
            "stream": "stream" in kind,
            "temperature": 1,
        }
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head + (body[: len(body) // 2] if kind == "half a request" else body))
        if kind in ("garbage", "hang-up while streaming"):
            connection.recv(1000)
        else:
            time.sleep(0.2)


def main() -> None:
    """Run all phases, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each number of clients")
    parser.add_argument("--soak", type=float, default=60, help="seconds of the soak with faults")
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        studies = make_studies(folder)
        expected = expected_answers(folder / "model", studies)
        server = Server(folder / "model", folder / "audit.jsonl", arguments.threads)
        try:
            phase(server, studies, expected, 2, 3)  # warm
            base: tuple[float, float] | None = None
            for clients in (1, 8, 32):
                tally, _ = phase(server, studies, expected, clients, arguments.seconds)
                base = base or tally.rates
                lines.append(tally.row(f"{clients} clients", base))
                print(lines[-1], flush=True)
            tally, memory = phase(server, studies, expected, 16, arguments.soak, faults=True)
            assert base is not None
            lines.append(tally.row("16 clients, faults", base))
            print(lines[-1], flush=True)
        finally:
            status = server.stop()
        audited = sum(1 for _ in (folder / "audit.jsonl").open())
    quarter = max(1, len(memory) // 4)
    early, late = np.median(memory[quarter : 2 * quarter]), np.median(memory[-quarter:])
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    report = [
        f"# Load on the server, {datetime.date.today()}",
        "",
        f"`python benchmarks/serving_load.py --seconds {arguments.seconds:g} --soak {arguments.soak:g} --threads {arguments.threads}`",
        "",
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, {os.cpu_count()} cores "
        f"(load {load} at the end, clients and server on the same ones), {platform.machine()}, float32.",
        "",
        "| phase | right answers | lost | exchanged or wrong | answers/s | ratio | per CPU second of the server | ratio | "
        "first token p50, s | p95, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *lines,
        "",
        f"Faults in the soak: {', '.join(f'{count} {kind}' for kind, count in sorted(tally.faults.items()))}.",
        f"Memory of the server's process in the soak: {early:.0f} MiB in its second quarter, {late:.0f} MiB in its last.",
        f"Audit lines: {audited}. Exit status after SIGTERM: {status}.",
        "",
    ]
    print("\n".join(report[-5:]))
    if arguments.out is not None:
        arguments.out.write_text("\n".join(report), encoding="utf-8")


if __name__ == "__main__":
    main()
