"""How much memory converting and loading a checkpoint takes, relative to its weights.

    python benchmarks/checkpoint_memory.py [--gigabytes 3] [--folder DIR] [--out FILE.md]

Writes a checkpoint in the MedM-VL reference layout (Qwen2 with the given size of random bfloat16 weights in shards, SigLIP, an
MLP), converts it, loads the result and lets it answer, and puts the finished checkpoint of a LoRA stage together from the
pieces of two processes, each in a separate process, and removes everything again. Two peaks are read: everything resident (VmHWM), mapped files included, which the kernel may drop at any time; and anonymous memory
(RssAnon, sampled every 5 ms), which it may not. What the interpreter and its libraries held before the work began is subtracted
from both and given apart. Linux only.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[1] / "tests" / "parity" / "reference"
WIDTH, MLP, VOCABULARY, SHARD = 2048, 11008, 151936, 1 << 30
LAYER_VALUES = 3 * WIDTH * MLP + 2 * WIDTH * WIDTH + 2 * WIDTH * (WIDTH // 8) + WIDTH * 5 // 4 + 2 * WIDTH


# --- the checkpoint


def write_checkpoint(folder: Path, gigabytes: float) -> int:
    """Write the checkpoint and the parts it names; returns the bytes of its weights."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(FIXTURES / "pretrained", folder / "pretrained")
    source = folder / "source"
    shutil.copytree(FIXTURES / "checkpoints" / "v1_siglip_mlp_qwen2", source)
    small = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    layers = max(1, round((gigabytes * 1e9 / 2 - VOCABULARY * WIDTH) / LAYER_VALUES))
    edit(folder / "pretrained" / "qwen2-tiny" / "config.json", {
        "hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
    })  # fmt: skip
    edit(source / "config.json", {"hidden_size": WIDTH, "torch_dtype": "bfloat16"})
    shapes: dict[str, tuple[int, ...]] = {
        name: tuple(t.shape) for name, t in small.items() if name.startswith("encoder")
    }
    narrow = small["connector_image.connector.0.weight"].shape[1]
    shapes |= {"connector_image.connector.0.weight": (WIDTH, narrow), "connector_image.connector.0.bias": (WIDTH,)}
    shapes |= {"connector_image.connector.2.weight": (WIDTH, WIDTH), "connector_image.connector.2.bias": (WIDTH,)}
    shapes |= {"llm.model.embed_tokens.weight": (VOCABULARY, WIDTH), "llm.model.norm.weight": (WIDTH,)}
    for layer in range(layers):
        shapes |= {f"llm.model.layers.{layer}.{name}": shape for name, shape in layer_shapes().items()}
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        filled += 2 * torch.Size(shape).numel()
        if filled > SHARD:
            shards.append({})
            filled = 2 * torch.Size(shape).numel()
        shards[-1][name] = shape
    where, total = {}, 0
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02) for name, shape in names.items()}
        save_file(tensors, source / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(names, file))
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def layer_shapes() -> dict[str, tuple[int, ...]]:
    """Return the tensors of one Qwen2 layer."""
    narrow = WIDTH // 8
    return {
        "self_attn.q_proj.weight": (WIDTH, WIDTH), "self_attn.q_proj.bias": (WIDTH,),
        "self_attn.k_proj.weight": (narrow, WIDTH), "self_attn.k_proj.bias": (narrow,),
        "self_attn.v_proj.weight": (narrow, WIDTH), "self_attn.v_proj.bias": (narrow,),
        "self_attn.o_proj.weight": (WIDTH, WIDTH),
        "mlp.gate_proj.weight": (MLP, WIDTH), "mlp.up_proj.weight": (MLP, WIDTH), "mlp.down_proj.weight": (WIDTH, MLP),
        "input_layernorm.weight": (WIDTH,), "post_attention_layernorm.weight": (WIDTH,),
    }  # fmt: skip


def edit(file: Path, changes: dict[str, Any]) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# --- the measurement, in a process of its own


def measure(work: Callable[[], Any]) -> dict[str, float]:
    """Run `work`; return peaks above the level before it, and that level, in bytes."""
    before, peak, done = status("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], status("RssAnon"))
            time.sleep(0.005)

    Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM
    base = status("VmRSS")
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    kept = work()  # held until the peak is read
    seconds = time.monotonic() - started
    done.set()
    watcher.join()
    highest = status("VmHWM")
    del kept
    return {"resident": highest - base, "anonymous": peak[0] - before, "base": base, "seconds": seconds}


def status(key: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def job(name: str, folder: Path) -> dict[str, float]:
    """Run one job: what it needs is imported before the measurement begins."""
    import torch

    from medmvl.checkpoints import convert
    from medmvl.inference import Predictor
    from medmvl.models import MedMVLForConditionalGeneration

    load = MedMVLForConditionalGeneration.from_pretrained
    put_together = consolidation(folder) if name.startswith("put together") else None
    jobs: dict[str, Callable[[], Any]] = {
        "convert": lambda: convert(folder / "source", folder / "converted"),
        "load, stored dtype": lambda: load(folder / "converted"),
        "load, float32": lambda: load(folder / "converted", dtype=torch.float32),
        "load and answer, stored dtype": lambda: Predictor.from_pretrained(
            folder / "converted", dtype="bfloat16", device="cpu"
        ).answer("What is it?", images=[str(FIXTURES / "data" / "img0.png")], max_new_tokens=1),
    }
    return measure(put_together or jobs[name])


def consolidation(folder: Path) -> Callable[[], Any]:
    """Write what two processes lay down at the end of a LoRA stage; return what makes a checkpoint of it."""
    import torch

    from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration
    from medmvl.training.engine.consolidate import write_consolidated
    from medmvl.training.engine.state import WEIGHTS, write_values
    from medmvl.training.engine.trainable import Adaptation, freeze_and_adapt
    from medmvl.training.recipe import LanguageStage

    described = {"name": "lora", "train": {"llm": "lora", "image_connector": "full"}, "lr": 1e-4, "epochs": 1}
    adaptation = Adaptation.of(LanguageStage.model_validate(described))
    source, pieces, target = (folder / name for name in ("converted", "pieces", "together"))
    with torch.device("meta"):
        model = MedMVLForConditionalGeneration(MedMVLConfig.from_pretrained(source))
        trained = freeze_and_adapt(model, adaptation).trainable()
    for made in (pieces, target):
        made.mkdir()
    for rank in range(2):
        values = {name: torch.randn(p.shape).mul_(0.01).tensor_split(2)[rank] for name, p in trained.items()}
        write_values(pieces, WEIGHTS, values, rank, 2)
        del values
    return lambda: write_consolidated(target, source, pieces, adaptation, "bfloat16")


# --- the table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the weights in bfloat16")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--job", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(job(options.job[0], Path(options.job[1]))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        total = write_checkpoint(folder, options.gigabytes)
        lines = [
            "| job | weights in memory | peak resident | anonymous | before the work | seconds |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name, size in (
            ("convert", total),
            ("load, stored dtype", total),
            ("load and answer, stored dtype", total),
            ("load, float32", 2 * total),
            ("put together after LoRA on two processes", total),
        ):
            command = [sys.executable, __file__, "--job", name, str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            lines.append(
                f"| {name} | {size / 1e9:.2f} GB | {found['resident'] / size:.3f}x | {found['anonymous'] / size:.3f}x | "
                f"{found['base'] / 1e6:.0f} MB | {found['seconds']:.1f} |"
            )
    import torch
    import transformers

    head = (
        f"{date.today()}, {platform.machine()}, Linux, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}.\nCommand: `python benchmarks/checkpoint_memory.py --gigabytes "
        f"{options.gigabytes:g}`.\n"
    )
    text = "\n".join(["# Memory of converting and loading a checkpoint", "", head, *lines, ""])
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
