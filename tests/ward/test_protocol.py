"""Protocol files: strict, with errors a person can act on."""

from __future__ import annotations

import pytest

from medmvl.errors import WardError
from medmvl.ward import load_protocol
from medmvl.ward.process import check_names
from ward.stub import EFFUSION, make_protocol

TEXT = """
name: chest
series: {modality: CT, slice_thickness: {max: 5}, kernel: ["B*", "*sharp*"]}
questions:
  - {id: effusion, ask: "Is there a pleural effusion?", kind: yes-no, finding: pleural effusion, threshold: 0.4}
  - {id: report, ask: Describe the findings.}
results: {send: [sr, pdf], language: zh}
destinations:
  - {name: pacs, dicom: {host: pacs.local, port: 104, ae_title: PACS}}
  - {name: web, dicomweb: {url: https://pacs.local/dicom-web, user: ai, password_env: PACS_PASSWORD}}
node: {callers: [PACS], spool: spool}
"""


def test_protocol_is_read_from_yaml(tmp_path):
    (tmp_path / "p.yaml").write_text(TEXT)
    protocol = load_protocol(tmp_path / "p.yaml")
    assert protocol.series.modality == ["CT"]
    assert 5.0 in protocol.series.slice_thickness
    assert 5.1 not in protocol.series.slice_thickness
    assert protocol.questions[0].choices == ["Yes", "No"]
    assert protocol.questions[1].choices is None
    assert protocol.node.quiet_seconds == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"results.langage": "en"}, r"results.langage: unknown key. Did you mean 'language'\?"),
        ({"serie": {}}, r"serie: unknown key. Did you mean 'series'\?"),
        (
            {"questions": [{**EFFUSION, "treshold": 0.5}]},
            r"questions\[0\].treshold: unknown key. Did you mean 'threshold'",
        ),
        (
            {"questions": [{**EFFUSION, "threshold": 1.5}]},
            r"questions\[0\].threshold: must be at most 1 \(got 1.5\)",
        ),
        ({"questions": [EFFUSION, EFFUSION]}, "two questions have the same name"),
        (
            {"questions": [{"id": "a", "ask": "Which?", "kind": "choice", "options": ["left"]}]},
            "at least two different",
        ),
        ({"questions": [{"id": "a", "ask": "Which?", "threshold": 0.5}]}, "kind text has not; use yes-no or choice"),
        ({"results": {"language": "zh"}}, "needs font"),
        ({"destinations": [{"name": "a"}]}, "exactly one of dicom and dicomweb"),
        (
            {"destinations": [{"name": "a", "dicomweb": {"url": "https://x", "user": "u"}}]},
            "password_env belong together",
        ),
        ({"series.modality.x": 1}, "has no keys of its own"),
        ({"node": {"spool": "s"}}, "node.callers: this key is required"),
    ],
)
def test_wrong_protocol_is_refused_with_its_key(changes, message):
    with pytest.raises(WardError, match=message):
        make_protocol(**changes)


DICOM = {"host": "pacs", "port": 104, "ae_title": "PACS"}
WEB = {"url": "https://pacs/dicom-web"}
NODE = {"callers": ["PACS"], "spool": "spool"}


def one_destination(**kinds):
    return {"destinations": [{"name": "pacs", **kinds}]}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"name": "a b"}, "name"),
        ({"model": 3}, "model"),
        ({"series": None}, "series"),
        ({"series.modality": []}, "series.modality"),
        ({"series.orientation": "oblique"}, "series.orientation"),
        ({"series.slice_thickness": 3}, "series.slice_thickness"),
        ({"series.slice_thickness": {"max": "thin"}}, "series.slice_thickness.max"),
        ({"series.min_slices": 0}, "series.min_slices"),
        ({"series.prefer": ["thin"]}, r"series.prefer\[0\]"),
        ({"series.spacing": [1, 2]}, "series.spacing"),
        ({"series.spacing": [1, 2, -3]}, r"series.spacing\[2\]"),
        ({"series.gaps": "leave"}, "series.gaps"),
        ({"series.units": "hu"}, "series.units"),
        ({"questions": []}, "questions"),
        ({"questions": EFFUSION}, "questions"),
        ({"questions": [{**EFFUSION, "id": "a b"}]}, r"questions\[0\].id"),
        ({"questions": [{**EFFUSION, "kind": "yesno"}]}, r"questions\[0\].kind"),
        ({"questions": [{"id": "a"}]}, r"questions\[0\].ask"),
        ({"questions": [{**EFFUSION, "options": ["yes"]}]}, r"questions\[0\]"),
        ({"questions": [{**EFFUSION, "finding": 3}]}, r"questions\[0\].finding"),
        ({"questions": [{**EFFUSION, "site": ["lung"]}]}, r"questions\[0\].site"),
        (
            {"questions": [{**EFFUSION, "site": {"value": "1", "scheme": "99X"}}]},
            r"questions\[0\].site.meaning",
        ),
        ({"questions": [{**EFFUSION, "title": "x" * 65}]}, r"questions\[0\].title"),
        ({"results.send": ["srr"]}, r"results.send\[0\]"),
        ({"results.send": []}, "results.send"),
        ({"results.send_when": "never"}, "results.send_when"),
        ({"results.language": "de"}, "results.language"),
        ({"results.series_number": 0}, "results.series_number"),
        ({"results.key_slices": 13}, "results.key_slices"),
        ({"destinations": {"name": "pacs", "dicom": DICOM}}, "destinations"),
        (one_destination(dicom="pacs:104"), r"destinations\[0\].dicom"),
        (one_destination(dicom={**DICOM, "port": 0}), r"destinations\[0\].dicom.port"),
        (one_destination(dicom={**DICOM, "port": "104"}), r"destinations\[0\].dicom.port"),
        (one_destination(dicom={**DICOM, "ae_title": "X" * 17}), r"destinations\[0\].dicom.ae_title"),
        (one_destination(dicom={**DICOM, "ae_title": " "}), r"destinations\[0\].dicom.ae_title"),
        (one_destination(dicom={**DICOM, "ae_title": "A\\B"}), r"destinations\[0\].dicom.ae_title"),
        (one_destination(dicomweb={"url": "pacs/dicom-web"}), r"destinations\[0\].dicomweb.url"),
        (one_destination(dicomweb={**WEB, "verify": "yes"}), r"destinations\[0\].dicomweb.verify"),
        ({"node": {**NODE, "port": 70000}}, "node.port"),
        ({"node": {**NODE, "callers": "PACS"}}, "node.callers"),
        ({"node": {**NODE, "callers": []}}, "node.callers"),
        ({"node": {**NODE, "quiet_seconds": -1}}, "node.quiet_seconds"),
        ({"node": {**NODE, "quiet_seconds": float("nan")}}, "node.quiet_seconds"),
        ({"node": {**NODE, "keep_hours": "1d"}}, "node.keep_hours"),
        ({"node": {**NODE, "max_crashes": 0}}, "node.max_crashes"),
        ({"node": {**NODE, "quite_seconds": 1}}, "node.quite_seconds"),
        ({"node": {**NODE, "tls": True}}, "node.tls"),
        ({"node": []}, "node"),
    ],
)
def test_each_wrong_value_is_one_sentence_with_its_key(changes, key):
    with pytest.raises(WardError, match=f"^the protocol is not a valid protocol: {key}: [^\n]+$") as raised:
        make_protocol(**changes)
    message = str(raised.value)
    assert not [jargon for jargon in ("instance of", "validation", "pattern", "Section") if jargon in message]


def test_several_faults_are_listed_one_per_line():
    with pytest.raises(WardError) as raised:
        make_protocol(**{"results.language": "de", "series.gaps": "leave"})
    assert len(str(raised.value).splitlines()) == 3


@pytest.mark.parametrize(
    "destination",
    [
        {"dicomweb": {"url": "https://user:S3CRET@pacs/dicom-web"}},
        {"dicomweb": {"url": "https://user:S3/CR@ET@pacs/dicom-web"}},
        {"dicomweb": {"url": "user:S3CRET@pacs"}},
        {"dicomweb": "https://user:S3CRET@pacs/dicom-web"},
        {"dicomweb": {**WEB, "password": "S3CRET"}},
        {"dicomweb": {**WEB, "user": "S3CRET:user@pacs"}},
        {"dicomweb": {**WEB, "user": "user", "password_env": "S3CRET!"}},
        {"dicomweb": {**WEB, "token_env": "S3CRET.abc.def"}},
        {"dicom": {**DICOM, "host": 3, "ae_title": "user:S3CRET@pacs"}},
    ],
)
def test_messages_repeat_no_password(destination):
    with pytest.raises(WardError, match=r"destinations\[0\]") as raised:
        make_protocol(**one_destination(**destination))
    assert "S3" not in str(raised.value)
    assert "ET" not in str(raised.value)


def test_unknown_site_is_refused_before_a_model_is_asked():
    with pytest.raises(WardError, match="Unknown site 'lnug'. Did you mean 'lung'"):
        check_names(make_protocol(questions=[{**EFFUSION, "site": "lnug"}]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "must hold keys and values"),
        ("a: [", "p.yaml, line 1: not valid YAML"),
        ("url: https://user:S3CRET@pacs: x", "p.yaml, line 1: not valid YAML: mapping values are not allowed here"),
        ("a: \x00", "p.yaml is not valid YAML"),
        ("name: a\nname: b", "line 2: the key 'name' is given twice"),
    ],
)
def test_broken_yaml_is_refused(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(WardError, match=message) as raised:
        load_protocol(tmp_path / "p.yaml")
    assert "S3CRET" not in str(raised.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(WardError, match="does not exist"):
        load_protocol(tmp_path / "no.yaml")


def test_hash_depends_on_questions_and_not_on_destinations():
    plain = make_protocol()
    sent = make_protocol(destinations=[{"name": "a", "dicom": {"host": "h", "port": 1, "ae_title": "A"}}], model="m")
    assert plain.hash == sent.hash
    assert plain.hash != make_protocol(**{"results.key_slices": 2}).hash
    assert plain.hash != make_protocol(questions=[EFFUSION]).hash
