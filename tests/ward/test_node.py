"""The node around a stub model: receive, wait, process, deliver; and what it does when something fails."""

from __future__ import annotations

import errno
import hashlib
import sqlite3
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import highdicom as hd
import pydicom
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, Verification

from medmvl.errors import BusyError, WardError
from medmvl.ward.node import sender, service
from medmvl.ward.node.service import Node, purge
from medmvl.ward.node.spool import Spool
from medmvl.ward.node.state import NodeState
from medmvl.ward.node.status import describe_status, node_status
from medmvl.ward.outcome import Delivery
from ports import free_port
from waiting import PATIENCE, wait_for
from ward.network import FakePacs, send
from ward.stub import EFFUSION, StubAnswerer, change, make_protocol, write_ct


@pytest.fixture
def pacs():
    fake = FakePacs().start()
    yield fake
    fake.stop()


def protocol_for(tmp_path, *peers, **node):
    settings = {
        "callers": ["MODALITY"],
        "spool": str(tmp_path / "spool"),
        "port": free_port(),
        "quiet_seconds": 0.3,
        "retry_seconds": 0.1,
        "max_retry_seconds": 0.4,
        "min_free_megabytes": 1,
        **node,
    }
    destinations = [peer.target(f"pacs{number}") for number, peer in enumerate(peers)]
    return make_protocol(
        questions=[EFFUSION], destinations=destinations, node=settings, **{"results.send": ["sr", "pdf"]}
    )


@contextmanager
def running(protocol, answerer=None):
    node = Node(protocol, lambda: answerer or StubAnswerer())
    with node.running():
        yield node


def status(protocol):
    return node_status(protocol.node)


def test_study_is_answered_and_results_arrive(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol):
        assert set(send(write_ct(tmp_path / "s"), protocol.node.port)) == {0}
        wait_for(lambda: len(pacs.stored) == 2)
        wait_for(lambda: status(protocol)["deliveries"] == {"pacs0: sent": 2})
    assert sorted(data.Modality for data in pacs.stored.values()) == ["DOC", "SR"]
    study = pydicom.dcmread(tmp_path / "s" / "slice0001.dcm").StudyInstanceUID
    assert {data.StudyInstanceUID for data in pacs.stored.values()} == {study}


def test_echo_is_answered(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol):
        entity = AE(ae_title="MODALITY")
        entity.add_requested_context(Verification)
        association = entity.associate("127.0.0.1", protocol.node.port, ae_title="MEDMVL")
        assert association.send_c_echo().Status == 0
        association.release()


@pytest.mark.parametrize("titles", [{"calling": "STRANGER"}, {"called": "OTHER"}])
def test_wrong_ae_title_is_rejected(tmp_path, pacs, titles):
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol):
        assert send(write_ct(tmp_path / "s"), protocol.node.port, **titles) == []
        assert wait_for(lambda: status(protocol)["counters"].get("associations_rejected")) == 1
        assert set(send(tmp_path / "s", protocol.node.port)) == {0}


def test_study_waits_for_quiet_and_for_its_sender(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    answerer = StubAnswerer()
    files = sorted(write_ct(tmp_path / "s").glob("*.dcm"))
    with running(protocol, answerer):
        entity = AE(ae_title="MODALITY")
        entity.add_requested_context(CTImageStorage)
        association = entity.associate("127.0.0.1", protocol.node.port, ae_title="MEDMVL")
        for file in files:
            assert association.send_c_store(pydicom.dcmread(file)).Status == 0
            time.sleep(0.1 if file is not files[3] else 1.0)  # a slow sender, far longer than the quiet time
        assert not answerer.asked
        association.release()
        wait_for(lambda: len(pacs.stored) == 2)
    assert len(answerer.asked) == 1
    assert answerer.asked[0][1].volumes[0].shape[0] == len(files)


def test_open_association_delays_at_most_patience_seconds(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs, patience_seconds=0.8)
    with running(protocol):
        entity = AE(ae_title="MODALITY")
        entity.add_requested_context(CTImageStorage)
        association = entity.associate("127.0.0.1", protocol.node.port, ae_title="MEDMVL")
        for file in write_ct(tmp_path / "s").glob("*.dcm"):
            association.send_c_store(pydicom.dcmread(file))
        wait_for(lambda: len(pacs.stored) >= 2)  # more, if the sender itself paused for so long
        association.release()


def test_same_study_again_gives_no_second_result(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    answerer = StubAnswerer()
    with running(protocol, answerer):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: status(protocol)["deliveries"] == {"pacs0: sent": 2})
        assert set(send(tmp_path / "s", protocol.node.port)) == {0}
        assert status(protocol)["counters"]["objects_received_again"] == 8
        time.sleep(1)
    assert len(answerer.asked) == 1
    assert set(pacs.received.values()) == {1}


def test_new_node_on_an_old_spool_gives_no_second_result(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: status(protocol)["deliveries"] == {"pacs0: sent": 2})
    Spool(tmp_path / "spool").state_file.unlink()  # even without its state: same UIDs, same bytes
    answerer = StubAnswerer()
    with running(protocol, answerer):
        wait_for(lambda: status(protocol)["deliveries"] == {"pacs0: sent": 2})
    assert len(pacs.stored) == 2


def test_growing_study_gets_a_new_result_for_more_slices(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    files = sorted(write_ct(tmp_path / "s").glob("*.dcm"))
    with running(protocol):
        send(files[:-1], protocol.node.port)
        wait_for(lambda: len(pacs.stored) == 2)
        send(files[-1:], protocol.node.port)
        wait_for(lambda: len(pacs.stored) == 4)
    assert len({data.SeriesInstanceUID for data in pacs.stored.values()}) == 4


def test_object_that_arrives_during_processing_leads_to_a_new_result(tmp_path, pacs):
    begun, go_on = threading.Event(), threading.Event()

    class Slow(StubAnswerer):
        def answer(self, ask, visuals, options, max_new_tokens):
            begun.set()
            go_on.wait(PATIENCE)
            return super().answer(ask, visuals, options, max_new_tokens)

    protocol, answerer = protocol_for(tmp_path, pacs), Slow()
    files = sorted(write_ct(tmp_path / "s").glob("*.dcm"))
    with running(protocol, answerer):
        send(files[:-1], protocol.node.port)
        assert begun.wait(PATIENCE)
        assert send(files[-1:], protocol.node.port) == [0]
        go_on.set()
        wait_for(lambda: len(pacs.stored) == 4)
        wait_for(lambda: status(protocol)["studies"] == {"done": 1})
    assert [visuals.volumes[0].shape[0] for _, visuals in answerer.asked] == [7, 8]


def test_enhanced_multiframe_object_is_answered(tmp_path, pacs):
    source = [pydicom.dcmread(path) for path in sorted(write_ct(tmp_path / "single").glob("*.dcm"))]
    enhanced = hd.legacy.LegacyConvertedEnhancedCTImage(
        source, series_instance_uid="1.2.3", series_number=2, sop_instance_uid="1.2.3.4", instance_number=1
    )
    (tmp_path / "s").mkdir()
    enhanced.save_as(tmp_path / "s" / "enhanced.dcm")
    protocol, answerer = protocol_for(tmp_path, pacs), StubAnswerer()
    with running(protocol, answerer):
        assert send(tmp_path / "s", protocol.node.port) == [0]
        wait_for(lambda: len(pacs.stored) == 2)
    assert answerer.asked[0][1].volumes[0].shape == (8, 32, 32)


def test_growth_outside_the_chosen_series_changes_nothing(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    answerer = StubAnswerer()
    files = sorted(write_ct(tmp_path / "s").glob("*.dcm"))
    with running(protocol, answerer):
        send(files, protocol.node.port)
        wait_for(lambda: len(pacs.stored) == 2)
        change(
            files[0],
            ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
            SOPInstanceUID="1.2.3.4",
            SeriesInstanceUID="1.2.3",
        )
        send(files[:1], protocol.node.port)
        wait_for(lambda: status(protocol)["outcomes"] == {"unchanged": 1})
    assert len(answerer.asked) == 1
    assert len(pacs.stored) == 2


def test_absent_pacs_does_not_delay_other_destinations(tmp_path):
    alive, dead = FakePacs().start(), FakePacs()
    protocol = protocol_for(tmp_path, alive, dead)
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: len(alive.stored) == 2)
        wait_for(lambda: "cannot be reached" in str(status(protocol)["destinations"]))
        assert "destination pacs1: " in describe_status(status(protocol))
        dead.start()
        wait_for(lambda: len(dead.stored) == 2)
        wait_for(lambda: not status(protocol)["destinations"])
    alive.stop()
    dead.stop()
    assert set(dead.received.values()) == {1}


def test_result_that_breaks_the_connection_holds_up_no_other(tmp_path, monkeypatch):
    protocol = protocol_for(tmp_path, FakePacs(), retry_seconds=2, max_retry_seconds=2)
    spool = Spool(tmp_path / "spool")
    state = NodeState(spool.state_file)
    sent, now = [], 100.0

    def deliver(destination, files):
        sent.append(files[0].name)
        return [Delivery("unreachable", "lost") if files[0].name == "a.dcm" else Delivery("stored")]

    monkeypatch.setattr(sender, "deliver", deliver)
    monkeypatch.setattr(sender, "time", SimpleNamespace(time=lambda: now))
    for number, name in enumerate("ab"):
        state.note_arrival(name, "1.2", 0)
        state.finish(name, "results", number, identity=name, files=[f"{name}/{name}.dcm"], targets=["pacs0"])
    job = sender.Sender(protocol.destinations[0], protocol.node, spool, state)
    assert job.run_once()
    assert not job.run_once()  # the destination is given time
    now += 3
    assert job.run_once()
    assert sent == ["a.dcm", "b.dcm"]
    assert [row.identity for row in state.deliveries(state="waiting")] == ["a"]
    state.close()


@pytest.mark.parametrize(("code", "times"), [(0xA700, 8), (0xC001, 2)])
def test_failed_status_is_not_success(tmp_path, pacs, code, times):
    pacs.answers = [code] * times
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: status(protocol)["deliveries"] == {"pacs0: sent": 2})
    assert set(pacs.received.values()) == {1}


def test_warning_status_is_success(tmp_path, pacs):
    pacs.answers = [0xB000, 0xB000]
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: status(protocol)["deliveries"] == {"pacs0: sent": 2})


def test_rejected_result_is_given_up_visibly_and_retried_on_request(tmp_path, pacs):
    pacs.answers = [0xC001] * 4
    protocol = protocol_for(tmp_path, pacs, max_attempts=2)
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: status(protocol)["deliveries"] == {"pacs0: failed": 2})
        assert "C-STORE status C001H" in describe_status(status(protocol))
        other = NodeState(Spool(tmp_path / "spool").state_file)
        assert other.retry_failed() == (0, 2)
        other.close()
        wait_for(lambda: len(pacs.stored) == 2)


def test_missing_slice_fails_visibly_until_it_arrives(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs, max_attempts=2)
    files = sorted(write_ct(tmp_path / "s").glob("*.dcm"))
    with running(protocol):
        send([*files[:3], *files[4:]], protocol.node.port)
        wait_for(lambda: status(protocol)["studies"] == {"failed": 1})
        assert "missing" in describe_status(status(protocol))
        send(files[3:4], protocol.node.port)
        wait_for(lambda: len(pacs.stored) == 2)
        assert status(protocol)["studies"] == {"done": 1}


def test_study_without_a_fitting_series_says_so(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    write_ct(tmp_path / "s", Modality="MR")
    with running(protocol):
        send(tmp_path / "s", protocol.node.port)
        wait_for(lambda: status(protocol)["outcomes"] == {"no-series": 1})
        assert "no series fits: MR axial" in describe_status(status(protocol))


def test_broken_object_is_refused_and_the_rest_goes_on(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    files = sorted(write_ct(tmp_path / "s").glob("*.dcm"))
    change(files[0], StudyInstanceUID="")
    with running(protocol):
        statuses = send(files, protocol.node.port)
        assert statuses[0] == 0xC000
        assert set(statuses[1:]) == {0}
        wait_for(lambda: len(pacs.stored) == 2)
        assert status(protocol)["counters"]["objects_refused_broken"] == 1


def test_full_disk_refuses_objects_and_recovers(tmp_path, pacs, monkeypatch):
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol):
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "free_bytes", lambda self: 0)
            assert set(send(write_ct(tmp_path / "s"), protocol.node.port)) == {0xA700}
            assert status(protocol)["disk_full"]
            assert "DISK FULL" in describe_status(status(protocol))
        assert set(send(tmp_path / "s", protocol.node.port)) == {0}
        wait_for(lambda: len(pacs.stored) == 2)


def test_write_error_is_not_confirmed(tmp_path, pacs, monkeypatch):
    protocol = protocol_for(tmp_path, pacs)

    def full(self, path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with running(protocol):
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "store", full)
            assert set(send(write_ct(tmp_path / "s"), protocol.node.port)) == {0xA700}
        assert set(send(tmp_path / "s", protocol.node.port)) == {0}
        wait_for(lambda: len(pacs.stored) == 2)


def test_results_that_cannot_be_written_are_made_later(tmp_path, pacs, monkeypatch):
    protocol = protocol_for(tmp_path, pacs)
    store, calls, room = Spool.store_result, [], threading.Event()

    def full_at_first(self, result):
        calls.append(1)
        if len(calls) < 3 or not room.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        return store(self, result)

    monkeypatch.setattr(Spool, "store_result", full_at_first)
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: "No space left" in str(status(protocol)["troubled_studies"]))
        room.set()  # only now, as the trouble ends with it
        wait_for(lambda: len(pacs.stored) == 2)


def test_own_results_sent_back_are_ignored(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: len(pacs.stored) == 2)
        for number, data in enumerate(pacs.stored.values()):
            data.save_as(tmp_path / f"back{number}.dcm", enforce_file_format=True)
        assert set(send(sorted(tmp_path.glob("back*.dcm")), protocol.node.port)) == {0}
        assert status(protocol)["counters"]["own_results_ignored"] == 2
        assert status(protocol)["studies"] == {"done": 1}


def test_unexpected_error_fails_the_study_and_not_the_node(tmp_path, pacs, caplog):
    class Faulty(StubAnswerer):
        def answer(self, ask, visuals, options, max_new_tokens):
            raise RuntimeError("patient Secret^Person")

    protocol = protocol_for(tmp_path, pacs, max_attempts=2)
    with running(protocol, Faulty()) as node:
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: status(protocol)["studies"] == {"failed": 1})
        assert "unexpected RuntimeError" in describe_status(status(protocol))
        assert "Secret" not in describe_status(status(protocol))
        node.wait(0.01)
    assert "unexpected RuntimeError at" in caplog.text
    assert "Secret" not in caplog.text


@pytest.mark.parametrize("uid", ["../../escaped", "1.2/../../3", "1" * 65])
def test_object_with_an_invalid_uid_is_refused(tmp_path, pacs, uid):
    protocol = protocol_for(tmp_path, pacs)
    file = min(write_ct(tmp_path / "s").glob("*.dcm"))
    data = pydicom.dcmread(file)
    data.add_new("StudyInstanceUID", "LO", uid)  # as text, which pydicom writes as it is
    with running(protocol), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
        data.save_as(file)
        assert send([file], protocol.node.port) == [0xC000]
        assert status(protocol)["counters"]["objects_refused_broken"] == 1
    assert not list((tmp_path / "spool" / "studies").iterdir())


def crash_while_processing(protocol, times):
    """Leave the state that a node leaves which is killed, again and again, while it processes its only study."""
    state = NodeState(Spool(Path(protocol.node.spool)).state_file)
    for _ in range(times):
        state.start(state.studies()[0].key, time.time())
        state.recover(time.time(), lambda crashes: 0)
    state.close()


@pytest.fixture
def answered(tmp_path, pacs):
    """A protocol in whose spool there is one study that has been answered."""
    protocol = protocol_for(tmp_path, pacs, max_attempts=1, max_crashes=3)
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: status(protocol)["deliveries"] == {"pacs0: sent": 2})
    return protocol


def test_study_that_kills_the_node_is_given_up(answered):
    crash_while_processing(answered, 3)
    answerer = StubAnswerer()
    with running(answered, answerer):
        wait_for(lambda: status(answered)["studies"] == {"failed": 1})
        assert "the node ended 3 times while processing it" in describe_status(status(answered))
    assert not answerer.asked


def test_kill_is_not_a_failed_attempt_of_the_study(answered):
    crash_while_processing(answered, 2)
    with running(answered):
        wait_for(lambda: status(answered)["studies"] == {"done": 1})
    assert not status(answered)["troubled_studies"]


def test_restart_after_a_kill_counts_it_and_lets_others_go_first(tmp_path, answered):
    state = NodeState(Spool(Path(answered.node.spool)).state_file)
    state.start(state.studies()[0].key, time.time())
    state.close()
    waits = {"retry_seconds": 600.0, "max_retry_seconds": 600.0}
    slow = answered.model_copy(update={"node": answered.node.model_copy(update=waits)})
    answerer = StubAnswerer()
    with running(slow, answerer):
        assert status(slow)["counters"]["studies_interrupted"] == 1
        assert "the node ended 1 time" in describe_status(status(slow))
        send(write_ct(tmp_path / "other", 5), slow.node.port)
        wait_for(lambda: status(slow)["studies"] == {"done": 1, "receiving": 1})
    assert len(answerer.asked) == 1


def test_stop_on_request_is_no_crash(tmp_path, pacs, monkeypatch):
    monkeypatch.setattr(service, "_JOIN", 0.1)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(StubAnswerer):
        def answer(self, ask, visuals, options, max_new_tokens):
            begun.set()
            go_on.wait(PATIENCE)
            return super().answer(ask, visuals, options, max_new_tokens)

    protocol = protocol_for(tmp_path, pacs)
    with running(protocol, Slow()):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        assert begun.wait(PATIENCE)
    (study,) = NodeState(Spool(tmp_path / "spool").state_file, readonly=True).studies()
    assert (study.state, study.crashes, study.attempts) == ("receiving", 0, 0)
    go_on.set()


def test_state_file_of_an_earlier_version_is_taken_over(answered):
    file = Spool(Path(answered.node.spool)).state_file
    with sqlite3.connect(file) as base:
        base.execute("ALTER TABLE studies DROP COLUMN crashes")
    with pytest.raises(WardError, match="Start the node once"):
        status(answered)
    with running(answered):
        assert status(answered)["studies"] == {"done": 1}


def test_two_nodes_cannot_share_a_spool(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol), pytest.raises(BusyError), running(protocol):
        pass


def test_model_that_cannot_be_loaded_ends_the_node_with_its_message(tmp_path, pacs):
    def load():
        raise WardError("no such model")

    node = Node(protocol_for(tmp_path, pacs), load)
    with pytest.raises(WardError, match="no such model"), node.running():
        node.wait(PATIENCE)


@pytest.mark.parametrize(
    ("change_", "message"), [({"node": None}, "no section `node`"), ({"destinations": []}, "no `dest")]
)
def test_incomplete_protocol_is_refused(tmp_path, pacs, change_, message):
    protocol = protocol_for(tmp_path, pacs).model_copy(update=change_)
    with pytest.raises(WardError, match=message):
        Node(protocol, StubAnswerer)


def test_delivered_studies_are_deleted_after_their_time(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: status(protocol)["deliveries"] == {"pacs0: sent": 2})
    spool = Spool(tmp_path / "spool")
    state = NodeState(spool.state_file)
    purge(spool, state, keep_hours=1)
    assert len(list(spool.studies.glob("*/*.dcm"))) == 8
    purge(spool, state, keep_hours=0)
    assert not list(spool.studies.iterdir())
    assert not list(spool.results.iterdir())
    assert state.studies()[0].state == "purged"
    state.close()


def test_object_that_arrives_during_a_purge_is_kept(tmp_path):
    spool = Spool(tmp_path)
    state = NodeState(spool.state_file)
    spool.store(spool.object_path("a", "1"), b"old")
    state.note_arrival("a", "1.2", time.time())
    state.start("a", time.time())
    state.finish("a", "results", time.time())
    arrival = threading.Thread(
        target=lambda: (state.note_arrival("a", "1.2", time.time()), spool.store(spool.object_path("a", "2"), b"new"))
    )

    def take_away():
        arrival.start()
        arrival.join(0.2)
        assert arrival.is_alive()  # it waits for the end of the transaction
        spool.set_aside("a")

    assert state.mark_purged("a", take_away)
    spool.clean()
    arrival.join()
    assert [path.read_bytes() for path in (spool.studies / "a").iterdir()] == [b"new"]
    assert state.studies()[0].state == "receiving"
    assert not state.mark_purged("a", lambda: pytest.fail("the study is not done"))
    assert [path.name for path in spool.studies.iterdir()] == ["a"]
    state.close()


def test_names_in_a_spool_are_keyed(tmp_path):
    first, second = Spool(tmp_path / "a"), Spool(tmp_path / "b")
    assert first.name_of("1.2.3") == Spool(tmp_path / "a").name_of("1.2.3")
    assert len({first.name_of("1.2.3"), second.name_of("1.2.3"), hashlib.sha256(b"1.2.3").hexdigest()[:32]}) == 3
    assert (tmp_path / "a/names.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "a/names.key").write_bytes(b"short")
    with pytest.raises(WardError, match="32 bytes"):
        Spool(tmp_path / "a")


def test_damaged_spool_does_not_stop_the_node(tmp_path, pacs, caplog):
    protocol = protocol_for(tmp_path, pacs)
    broken = Spool(tmp_path / "spool").object_path("0" * 32, "1")
    broken.parent.mkdir()
    broken.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 10)
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: len(pacs.stored) == 2)
    assert "a study of the spool is not taken up" in caplog.text


def test_metrics_count_what_happened(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs, metrics_port=free_port())
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: status(protocol)["counters"].get("objects_sent") == 2)  # counted after the state is noted
        text = urllib.request.urlopen(f"http://127.0.0.1:{protocol.node.metrics_port}/metrics").read().decode()
    assert "medmvl_node_objects_received_total 8" in text
    assert "medmvl_node_objects_sent_total 2" in text
    assert 'medmvl_node_studies{state="done"} 1' in text
    assert 'medmvl_node_deliveries{destination="pacs0",state="sent"} 2' in text


def test_spool_names_hold_no_patient_data(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        wait_for(lambda: status(protocol)["deliveries"] == {"pacs0: sent": 2})
    source = pydicom.dcmread(tmp_path / "s" / "slice0001.dcm")
    secrets = (source.StudyInstanceUID, source.SOPInstanceUID, source.PatientID)
    names = [str(path.relative_to(tmp_path / "spool")) for path in (tmp_path / "spool").rglob("*")]
    assert not [name for name in names for secret in secrets if secret in name]
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
