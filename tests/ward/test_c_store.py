"""C-STORE to a destination that fails in every way that it can."""

from __future__ import annotations

import pytest

from medmvl.ward.c_store import c_store
from medmvl.ward.network_settings import DicomTarget
from ward.network import FakePacs
from ward.stub import write_ct


@pytest.fixture
def pacs():
    fake = FakePacs().start()
    yield fake
    fake.stop()


@pytest.fixture
def files(tmp_path):
    return sorted(write_ct(tmp_path / "s").glob("*.dcm"))[:4]


def target_of(pacs, **changes):
    return DicomTarget.model_validate({**pacs.target()["dicom"], **changes})


def states(deliveries):
    return [delivery.state for delivery in deliveries]


def test_all_objects_share_one_association(pacs, files):
    assert states(c_store(target_of(pacs), files)) == ["stored"] * 4
    assert pacs.associations == 1


@pytest.mark.parametrize("broken", range(4))
def test_lost_association_is_followed_by_a_new_one(pacs, files, broken):
    pacs.answers = [0] * broken + [None]
    deliveries = c_store(target_of(pacs), files)
    assert states(deliveries) == ["unreachable" if index == broken else "stored" for index in range(4)]
    assert deliveries[broken].reason
    assert pacs.associations == (1 if broken == 3 else 2)
    assert set(pacs.received.values()) == {1}
    assert len(pacs.stored) == 3


def test_each_object_may_break_its_association(pacs, files):
    pacs.answers = [None] * 4
    assert states(c_store(target_of(pacs), files)) == ["unreachable"] * 4
    assert pacs.associations == 4


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (0x0000, "stored"),
        (0x0111, "stored"),
        (0xB000, "stored"),
        (0xB007, "stored"),
        (0xA700, "unreachable"),
        (0xA702, "unreachable"),
        (0x0110, "rejected"),
        (0x0122, "rejected"),
        (0x0124, "rejected"),
        (0xA900, "rejected"),
        (0xC000, "rejected"),
        (0xFE00, "rejected"),
    ],
)
def test_every_status_is_checked(pacs, files, status, state):
    pacs.answers = [status]
    assert states(c_store(target_of(pacs), files[:2])) == [state, "stored"]


def test_absent_destination_is_unreachable(pacs, files):
    pacs.stop()
    deliveries = c_store(target_of(pacs), files)
    assert states(deliveries) == ["unreachable"] * 4
    assert "cannot be reached" in deliveries[0].reason


def test_wrong_ae_title_is_named(pacs, files):
    deliveries = c_store(target_of(pacs, ae_title="OTHER"), files)
    assert states(deliveries) == ["unreachable"] * 4
    assert "check both AE titles" in deliveries[0].reason
