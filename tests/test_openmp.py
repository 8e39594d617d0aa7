"""Idle OpenMP threads sleep where other programs occupy the cores, unless the user has said how they wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from medmvl import openmp

TICKS = "cpu  {used} 0 0 {idle} 0 0 0 0 0 0\n"


@pytest.fixture
def cores(tmp_path, monkeypatch):
    """Return a function that sets the share of the cores in use."""
    statistics = tmp_path / "stat"
    monkeypatch.setattr(openmp, "_STATISTICS", statistics)
    for name in openmp._OWN:
        monkeypatch.setenv(name, "")  # so that what the test sets goes at its end
        monkeypatch.delenv(name)

    def set_share(share: float) -> None:
        statistics.write_text(TICKS.format(used=1000, idle=1000))
        later = TICKS.format(used=1000 + round(100 * share), idle=1000 + round(100 * (1 - share)))
        monkeypatch.setattr(openmp.time, "sleep", lambda _: statistics.write_text(later))

    return set_share


@pytest.mark.parametrize(("share", "spins"), [(0.0, None), (0.3, None), (0.5, "0"), (1.0, "0")])
def test_threads_sleep_on_busy_cores(cores, share, spins):
    cores(share)
    openmp.wait_as_fits()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_user_has_set_stays(cores, monkeypatch, name):
    cores(1.0)
    monkeypatch.setenv(name, "passive")
    openmp.wait_as_fits()
    assert os.environ[name] == "passive"
    assert ("GOMP_SPINCOUNT" in os.environ) == (name == "GOMP_SPINCOUNT")


def test_a_system_that_does_not_tell_is_left_alone(cores, monkeypatch, tmp_path):
    monkeypatch.setattr(openmp, "_STATISTICS", tmp_path / "missing")
    openmp.wait_as_fits()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_command_line_sets_it_before_torch_is_loaded():
    code = (
        "import sys, medmvl.cli.main as m; import medmvl.openmp as o; seen = [];"
        "o.busy_share = lambda seconds: seen.append('torch' in sys.modules) or 1.0;"
        "sys.argv = ['medmvl', 'list', 'connectors']\n"
        "try: m.main()\n"
        "except SystemExit: pass\n"
        "import os; print(seen, os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in openmp._OWN}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[False] 0"
