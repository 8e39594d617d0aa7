"""Upload of a checkpoint folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from medmvl.errors import CheckpointError, OutputError
from medmvl.files import PathLike, existing_folder

#: Files of a checkpoint's folder; what else lies there (logs, intermediate checkpoints, predictions) stays at home.
_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "recipe.yaml", "README.md")


def files_to_push(folder: PathLike) -> list[Path]:
    """Return the files of a checkpoint that an upload takes, sorted; hidden files and subfolders are not among them.

    Raises:
        CheckpointError: if the folder is no checkpoint, or has no model card.
    """
    path = existing_folder(folder)
    files = sorted({file for pattern in _PATTERNS for file in path.glob(pattern) if not file.name.startswith(".")})
    names = {file.name for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{path} is not a checkpoint folder: it has no config.json or no weights.")
    if "README.md" not in names:
        raise CheckpointError(f"{path} has no model card. Write one first: `medmvl checkpoint card {path}`.")
    return files


def push_folder(folder: PathLike, repository: str, *, private: bool = True) -> str:
    """Upload the files of `files_to_push` in one commit and return the address of the repository.

    Args:
        repository: OWNER/NAME; made if it does not exist.
        private: visibility if it is made.

    Raises:
        CheckpointError: as `files_to_push` does.
        OutputError: if the hub refuses, or cannot be reached.
    """
    path = Path(folder)
    names = [file.name for file in files_to_push(path)]
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=str(path),
            allow_patterns=names,
            commit_message="Upload a MedM-VL checkpoint",
        )
    except LocalTokenNotFoundError as error:
        raise OutputError("No token of the hub is stored. Log in first: `hf auth login`.") from error
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OutputError(f"The hub did not take {repository}: {first}") from error
    return str(address)
