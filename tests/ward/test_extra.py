"""Without the optional packages the message names the extra."""

from __future__ import annotations

import subprocess
import sys


def test_missing_package_names_the_extra():
    code = "import sys; sys.modules['reportlab'] = None; import medmvl.ward"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert "pip install 'medmvl[pacs]'" in run.stderr
