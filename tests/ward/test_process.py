"""From a study and a protocol to findings."""

from __future__ import annotations

import pydicom
import pytest

from medmvl.errors import ImagingError, WardError
from medmvl.ward.answering import ModelAnswerer
from medmvl.ward.process import process_study
from ward.stub import EFFUSION, REPORT, StubAnswerer, change, make_protocol, write_ct, write_radiograph

SIDE = {"id": "side", "ask": "Which side?", "kind": "choice", "options": ["left", "right"], "threshold": 0.8}


def uids(result):
    return [str(data.SOPInstanceUID) for data in result.objects]


def test_volume_is_read_in_hounsfield_units(tmp_path):
    answerer = StubAnswerer()
    result = process_study(write_ct(tmp_path / "s"), make_protocol(), answerer)
    volume = answerer.asked[0][1].volumes[0]
    assert volume.units == "HU"
    assert volume.shape == (8, 32, 32)
    assert result.outcome == "results"
    assert [finding.answer for finding in result.findings] == ["Yes", "The lungs are clear."]


def test_radiograph_is_read_as_an_image(tmp_path):
    answerer = StubAnswerer()
    write_radiograph(tmp_path / "s" / "film.dcm")
    process_study(tmp_path / "s", make_protocol(series={"modality": ["CR"]}), answerer)
    assert answerer.asked[0][1].images[0].shape == (64, 64)
    assert not answerer.asked[0][1].volumes


@pytest.mark.parametrize(
    ("probability", "question", "answer", "positive", "sent"),
    [
        (0.45, {}, "No", False, True),
        (0.45, {"threshold": 0.4}, "Yes", True, True),
        (0.45, {"send": "positive"}, "No", False, False),
        (0.5, {"send": "positive"}, "Yes", True, True),
        (0.45, {"options": ["present", "absent"]}, "absent", False, True),
    ],
)
def test_threshold_decides_answer_and_sending(tmp_path, probability, question, answer, positive, sent):
    protocol = make_protocol(questions=[{**EFFUSION, **question}])
    result = process_study(write_ct(tmp_path / "s"), protocol, StubAnswerer(probability))
    finding = result.findings[0]
    assert (finding.answer, finding.positive, finding.sent) == (answer, positive, sent)
    assert result.outcome == ("results" if sent else "nothing-to-send")
    assert finding.probability == pytest.approx(probability)


def test_nothing_is_sent_without_a_positive_answer(tmp_path):
    protocol = make_protocol(**{"questions": [EFFUSION, REPORT], "results.send_when": "finding"})
    folder = write_ct(tmp_path / "s")
    assert process_study(folder, protocol, StubAnswerer(0.2)).outcome == "nothing-to-send"
    assert process_study(folder, protocol, StubAnswerer(0.7)).outcome == "results"


def test_choice_below_its_threshold_is_not_sent(tmp_path):
    protocol = make_protocol(questions=[{**SIDE, "send": "positive"}])
    folder = write_ct(tmp_path / "s")
    assert not process_study(folder, protocol, StubAnswerer(0.7)).objects
    assert process_study(folder, protocol, StubAnswerer(0.85)).findings[0].answer == "left"


def test_no_fitting_series_is_an_outcome(tmp_path):
    result = process_study(write_ct(tmp_path / "s"), make_protocol(series={"modality": ["MR"]}), StubAnswerer())
    assert result.outcome == "no-series"
    assert "modality is not MR" in result.notes[0]


def test_same_input_gives_the_same_uids(tmp_path):
    folder = write_ct(tmp_path / "s")
    first, again = (process_study(folder, make_protocol(), StubAnswerer()) for _ in range(2))
    assert uids(first) == uids(again)
    assert first.identity == again.identity
    other = process_study(folder, make_protocol(name="other"), StubAnswerer())
    assert not set(uids(first)) & set(uids(other))


def test_more_slices_give_other_uids(tmp_path):
    folder = write_ct(tmp_path / "s")
    last = max(folder.glob("*.dcm"))
    moved = tmp_path / "late.dcm"
    last.rename(moved)
    before = process_study(folder, make_protocol(), StubAnswerer())
    moved.rename(last)
    after = process_study(folder, make_protocol(), StubAnswerer())
    assert not set(uids(before)) & set(uids(after))


def test_missing_slice_fails_unless_gaps_are_filled(tmp_path):
    folder = write_ct(tmp_path / "s")
    (folder / "slice0004.dcm").unlink()
    with pytest.raises(ImagingError, match="missing") as caught:
        process_study(folder, make_protocol(), StubAnswerer())
    assert "`series.gaps: fill`" in str(caught.value)
    filled = process_study(folder, make_protocol(series={"modality": ["CT"], "gaps": "fill"}), StubAnswerer())
    assert any("filled by interpolation" in note for note in filled.notes)


def test_units_and_spacing_can_be_said_in_a_protocol(tmp_path):
    folder = write_ct(tmp_path / "s", RescaleIntercept=9000)
    with pytest.raises(ImagingError, match="`series.units: arbitrary`"):
        process_study(folder, make_protocol(), StubAnswerer())
    answerer = StubAnswerer()
    told = {"modality": ["CT"], "units": "arbitrary", "spacing": [2.0, 1.0, 1.0]}
    process_study(folder, make_protocol(series=told), answerer)
    volume = answerer.asked[0][1].volumes[0]
    assert (volume.units, volume.spacing) == ("arbitrary", (2, 1, 1))


def test_keys_that_came_later_leave_the_hash_of_a_protocol(tmp_path):
    assert make_protocol().hash == "2940da811f56d8b67479f0f91cb403ffa526063dfce03284528aca0e8563ab2f"
    assert make_protocol(series={"modality": ["CT"], "units": "HU"}).hash != make_protocol().hash


def test_pixels_cut_short_fail_with_the_file(tmp_path):
    folder = write_ct(tmp_path / "s")
    file = folder / "slice0004.dcm"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ImagingError):
        process_study(folder, make_protocol(), StubAnswerer())


def test_unknown_window_and_missing_model_are_refused(tmp_path):
    folder = write_ct(tmp_path / "s")
    with pytest.raises(WardError, match="Did you mean 'lung'"):
        process_study(folder, make_protocol(**{"results.window": "lungs"}), StubAnswerer())
    with pytest.raises(WardError, match="No model is given"):
        process_study(folder, make_protocol())


def test_summary_names_no_patient_and_no_uid(tmp_path):
    folder = write_ct(tmp_path / "s")
    for file in folder.glob("*.dcm"):
        change(file, PatientName="Secret^Person", PatientID="ID-987")
    result = process_study(folder, make_protocol(), StubAnswerer())
    study = str(pydicom.dcmread(file).StudyInstanceUID)
    assert not any(secret in str(result.summary()) for secret in ("Secret", "ID-987", study))


def test_real_model_answers_with_probabilities(tmp_path, model_folder):
    answerer = ModelAnswerer.from_folder(model_folder, device="cpu")
    protocol = make_protocol(questions=[EFFUSION, {**REPORT, "max_new_tokens": 4}, SIDE])
    result = process_study(write_ct(tmp_path / "s"), protocol, answerer)
    yes_no, report, choice = result.findings
    assert 0 < yes_no.probability < 1
    assert sum(yes_no.reply.probabilities.values()) == pytest.approx(1)
    assert isinstance(report.answer, str)
    assert choice.probability >= 0.5
    blank = process_study(write_ct(tmp_path / "t", 4), protocol, answerer)
    assert blank.findings[0].probability != yes_no.probability


def test_real_model_reads_radiographs(tmp_path, model_folder):
    write_radiograph(tmp_path / "s" / "film.dcm")
    protocol = make_protocol(series={"modality": ["CR"]}, questions=[EFFUSION])
    result = process_study(tmp_path / "s", protocol, ModelAnswerer.from_folder(model_folder, device="cpu"))
    assert result.outcome == "results"
