"""Execute the notebooks of `docs/notebooks` and store their results, without warnings and without what differs from run to run.

    python tools/run_notebooks.py [NAME ...]

Needs the extra `docs`. What a notebook prints and draws is shown in the docs site as it is stored.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def execute(path: Path) -> Any:
    """Return the executed notebook; an error in a cell is raised with the cell."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
    return notebook


def store(notebook: Any, path: Path) -> None:
    """Write a notebook with its results, without standard error, times and names of this machine."""
    import nbformat

    for cell in notebook.cells:
        cell.metadata = {}
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = KERNEL
    nbformat.write(notebook, path)


def main() -> None:
    """Execute and store all notebooks, or those that are named."""
    for path in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        start = time.monotonic()
        store(execute(path), path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
