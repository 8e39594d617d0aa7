"""Planted identifiers of patients are in no output of any command: contents, file names, messages, logs, temporary files."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import logging
import multiprocessing
import multiprocessing.forkserver
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
import yaml
from PIL import Image
from tests.serving.page_live import Visitor, live_page
from tests.training.conftest import MODEL
from tests.ward.network import FakePacs, send
from tests.ward.stub import StubAnswerer, make_protocol, write_ct
from typer.testing import CliRunner

from medmvl.checkpoints import adapt
from medmvl.cli import main as command_line
from medmvl.cli.main import app
from medmvl.experiments.compare import jobs
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.serving.server import readers
from medmvl.ward.folder_app import run_study
from ports import free_port
from waiting import wait_for

#: Identity of each patient: name, number, birth date, accession number, institution, referring physician, further number.
PATIENTS = [
    ("QUISENBERRY^THADDEUS", "MRN7731942", "19430217", "ACC55091827", "Odilienspital Nordheim", "VOSSKUHLER^IRMGARD", "OTH448220"),
    ("HALVORSEN^BRYNHILD", "MRN8846203", "19680930", "ACC66102938", "Klinikum Ostwald", "ZIMMERLIN^EUSTACE", "OTH559331"),
]  # fmt: skip
TEXTS = [
    "Mr. Quisenberry, born 17.02.1943 (MRN7731942): no effusion.",
    "Halvorsen, Brynhild, *1968-09-30, ACC66102938: effusion.",
]


def needles() -> dict[bytes, str]:
    """Return what must not occur -> what it is: identifiers in several spellings, and digests of them."""
    found: dict[bytes, str] = {}
    spellings = {"17.02.1943", "17 February 1943", "30.09.1968", "1943-02-17", "1968-09-30"}
    for patient in PATIENTS:
        spellings |= {
            *patient,
            *(word for value in patient for word in value.replace("^", " ").split() if len(word) > 5),
        }
    spellings -= {"Klinikum"}  # a word of its own language, too
    for text in spellings:
        for encoding in ("utf-8", "utf-16-le"):
            found[text.lower().encode(encoding)] = text
        for spelled in {text, text.lower(), text.upper()}:
            for name in ("md5", "sha1", "sha256", "blake2b", "blake2s"):
                digest = hashlib.new(name, spelled.encode()).hexdigest()
                found[digest[:12].encode()] = f"{name} of {text}"
            found[hashlib.blake2b(spelled.encode(), digest_size=8).hexdigest().encode()] = f"blake2b-64 of {text}"
    return found


NEEDLES = needles()


def leaks(content: bytes) -> list[str]:
    lowered = content.lower()
    return [what for needle, what in NEEDLES.items() if needle in lowered]


def leaks_below(folder: Path, *, names_only: tuple[Path, ...] = ()) -> list[str]:
    """Return what is found in the names and contents of all files; of `names_only` the contents are the patients' own files."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found += [f"name {name}: {what}" for what in leaks(name.encode())]
        if path.is_file() and not any(path.is_relative_to(own) for own in names_only):
            content = path.read_bytes()
            if content[:2] == b"\x1f\x8b":
                content += gzip.decompress(content)
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    content += b"".join(archive.read(member) for member in archive.namelist())
            found += [f"{name}: {what}" for what in leaks(content)]
    return found


@pytest.fixture(scope="module", autouse=True)
def forkserver() -> None:
    """The server of reader processes, begun among the usual temporary files: below `output` the path of its socket is too long."""
    multiprocessing.set_forkserver_preload(readers.PRELOAD)
    multiprocessing.forkserver.ensure_running()


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for all outputs, with the temporary files and caches of the user in it; the key is elsewhere."""
    out = tmp_path / "output"
    for name, variable in (("tmp", "TMPDIR"), ("cache", "MEDMVL_CACHE"), ("home", "HOME"), ("xdg", "XDG_CACHE_HOME")):
        (out / name).mkdir(parents=True)
        monkeypatch.setenv(variable, str(out / name))
    monkeypatch.setenv("MEDMVL_PSEUDONYM_KEY", str(tmp_path / "owner/pseudonym.key"))
    monkeypatch.setattr(tempfile, "tempdir", str(out / "tmp"))
    monkeypatch.chdir(out)
    return out


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A small export of a PACS: a folder per patient and examination, with CTs and radiographs, and a table."""
    root = tmp_path / "export"
    rows = [["Patient ID", "PatientName", "Birth Date", "Accession", "Institution", "ct", "film", "question", "report"]]
    for number, patient in enumerate(PATIENTS):
        name, identifier, birth, accession, institution, referring, other = patient
        folder = f"{name.replace('^', '_')}_{identifier}/{accession}"
        write_ct(
            root / folder / "ct", number, PatientName=name, PatientID=identifier, PatientBirthDate=birth,
            AccessionNumber=accession, InstitutionName=institution, ReferringPhysicianName=referring, OtherPatientIDs=other,
            StudyDescription=f"CT of {identifier}", SeriesDescription=name, PatientComments=TEXTS[number],
        )  # fmt: skip
        (root / folder / "film").mkdir()
        picture = Image.new("L", (40, 40), 60 + 90 * number)
        picture.save(root / folder / f"film/{identifier}_{birth}.png")
        film = f"{folder}/film/{identifier}_{birth}.png"
        rows.append([identifier, name, birth, accession, institution, f"{folder}/ct", film, "Effusion?", TEXTS[number]])
    with (root / "table.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)
    facts = ("patient_id", "patient_name", "birth_date", "accession")
    chat = [
        {
            "query": f"<image>Who is {row[1]}?",
            "response": row[8],
            "images": [row[6]],
            **dict(zip(facts, row, strict=False)),
        }
        for row in rows[1:]
    ]
    (root / "chat.json").write_text(json.dumps(chat))
    return root


@pytest.fixture
def medmvl(output, capsys, caplog, monkeypatch) -> Callable[..., str]:
    """Run a command that must succeed, and search what it says; return it."""
    caplog.set_level(logging.DEBUG)
    for name in ("pydicom", "PIL", "matplotlib", "asyncio", "urllib3"):  # silent in a command
        logging.getLogger(name).setLevel(logging.WARNING)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["medmvl", *map(str, arguments)])
        try:
            command_line.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        said = capsys.readouterr()
        text = said.out + said.err + caplog.text
        caplog.clear()
        assert status == 0, text
        assert not leaks(text.encode()), text
        return text

    return run


CONVERT = ("--volume", "ct", "--image", "film", "--question", "question", "--answer", "report")


@pytest.fixture
def records(medmvl, export: Path, output: Path) -> Path:
    """The converted export: one patient in each of two splits, accession numbers as ids, dates kept as pseudonyms."""
    chosen = ("--patient", "Patient ID", "--id", "Accession", "--keep", "Birth Date,Institution", "--test-share", "0.5")
    medmvl("data", "convert", "folder", export / "table.csv", "--out", "records", *CONVERT, *chosen)
    return output / "records"


def own_files(records: Path) -> tuple[Path, ...]:
    """Links to the files of the export, whose headers name the patients as before."""
    return (records / "media",)


def recipe(records: Path, folder: Path) -> Path:
    stage = {"name": "s", "train": {"llm": {"mode": "lora", "lora": {"r": 2}}, "image_connector": "full"}, "lr": 1e-3}
    stage |= {"max_steps": 1, "batch_size": 1, "evaluate": {"data": ["held"], "every": 1}, "save_every": 1}
    data = {"mine": {"path": "train.jsonl"}, "held": {"path": "test.jsonl"}}
    cache = {"volume_cache": str(folder / "volumes")}
    content = {"name": "t", "data_root": str(records), "model": MODEL, "data": data, "stages": [stage]}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**content, "run": {"progress": False, "device": "cpu", **cache}}))
    return file


def test_records_and_looks_at_them_hold_no_identifier(medmvl, records: Path, output: Path, model_folder: Path) -> None:
    rows = [json.loads((records / f"{name}.jsonl").read_text()) for name in ("train", "test")]
    assert all(row["patient"].startswith("p") and row["image3d"][0].startswith("media/") for row in rows)
    assert "no effusion" in json.dumps(rows)
    for split in ("train", "test"):
        file = records / f"{split}.jsonl"
        medmvl("data", "check", file)
        medmvl("data", "show", file, "--geometry", "medm-vl-ct", "--out", f"{split}.html")
        medmvl("data", "cache", file, "--model", model_folder, "--out", f"cache-{split}")
    medmvl("data", "audit", records / "train.jsonl", records / "test.jsonl")
    assert leaks_below(output, names_only=own_files(records)) == []


def test_conversion_without_named_columns_leaks_nothing(medmvl, export: Path, output: Path) -> None:
    medmvl("data", "convert", "folder", export / "table.csv", "--out", "a", *CONVERT)
    medmvl("data", "convert", "folder", export / "chat.json", "--out", "b", "--patient", "patient_id")
    medmvl(
        "data",
        "convert",
        "folder",
        export / "table.csv",
        "--out",
        "c",
        "--text-only",
        "--answer",
        "report",
        "--prompt",
        "?",
    )
    assert leaks_below(output, names_only=(output / "a/media", output / "b/media")) == []
    rows = [json.loads(line) for line in (output / "a/train.jsonl").read_text().splitlines()]
    assert len({row["patient"] for row in rows}) == 2  # from the DICOM headers


def test_training_and_answers_hold_no_identifier(medmvl, records: Path, output: Path) -> None:
    file = recipe(records, output)
    medmvl("train", file, "--dry-run")
    medmvl("data", "cache", records / "train.jsonl", "--model", file, "--out", "volumes")
    medmvl("train", file, "--out", "run")
    model, test = output / "run/model", records / "test.jsonl"
    medmvl("predict", "--model", model, "--data", test, "--out", "p.jsonl", "--max-new-tokens", 4)
    medmvl("score", "--model", model, "--data", test, "--out", "s.jsonl")
    medmvl("evaluate", "--predictions", "p.jsonl", "--benchmark", "own", "--references", test, "--out", "scores")
    asked = ("--model", model, "--data-root", test, "--control", "blank", "--max-new-tokens", 4)
    medmvl("evaluate", *asked, "--benchmark", "own", "--out", "evaluation")
    row = json.loads(test.read_text())
    volume = records / row["image3d"][0]
    medmvl("ask", "--model", model, "--volume", volume, "Effusion?", "--max-new-tokens", 4, "--json", "--out", "a.json")
    medmvl("checkpoint", "inspect", model)
    medmvl("explain", "--model", model, "--volume", volume, "--answer", "Yes.", "--out", "why", "Effusion?")
    closed = {**row, "answer": "No", "answer_type": "CLOSED", "conversations": row["conversations"][:1]}
    (records / "closed.jsonl").write_text(json.dumps(closed) + "\n")
    medmvl("checkpoint", "calibrate", model, "--data", records / "closed.jsonl")
    assert (model / "calibration.json").is_file()
    assert leaks_below(output, names_only=own_files(records)) == []


@pytest.fixture
def pictures(output: Path, export: Path) -> Path:
    """A recipe on records that the hospital wrote itself: ids, folders, file names and answers name the patients."""
    rows = []
    for patient, text, film in zip(PATIENTS, TEXTS, sorted(export.glob("*/*/film/*.png"), reverse=True), strict=True):
        turns = [{"from": "human", "value": "<image>\nEffusion?"}, {"from": "gpt", "value": text}]
        path = film.relative_to(export).as_posix()
        rows.append({"id": patient[1], "patient": patient[0], "image": [path], "conversations": turns})
    file = export / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"name": "s", "train": {"llm": {"mode": "lora", "lora": {"r": 2}}, "image_connector": "full"}, "lr": 1e-3}
    stage |= {"max_steps": 1, "batch_size": 2, "feature_cache": True, "save_every": 1}
    model = {"llm": MODEL["llm"], "image": MODEL["image"]}
    content = {"name": "t", "data_root": str(export), "model": model, "data": {"own": {"path": "own.jsonl"}}}
    recipe = output / "own.yaml"
    recipe.write_text(yaml.safe_dump({**content, "stages": [stage], "run": {"progress": False, "device": "cpu"}}))
    return recipe


def test_checkpoints_of_records_that_name_patients_do_not(medmvl, pictures: Path, output: Path) -> None:
    """Records as the hospital has them, trained on; the model in every form that leaves the hospital."""
    medmvl("train", pictures, "--out", "run")
    medmvl("data", "pack", "run/features", "--out", "packed")
    medmvl("checkpoint", "card", "run/model", "--force")
    medmvl("checkpoint", "export", "run/model", "llava", "--format", "llava-hf")
    medmvl("checkpoint", "convert", "llava", "converted")
    adapted = adapt(MedMVLForConditionalGeneration.from_pretrained(output / "converted"))
    adapted.save_pretrained(output / "adapters")
    medmvl("checkpoint", "merge", "adapters", "merged", "--base", "converted")
    medmvl("checkpoint", "card", "merged")
    medmvl("checkpoint", "inspect", "merged")
    assert leaks_below(output) == []


def run_job_here(job, *_: object) -> jobs.Outcome:
    """Run a job of a comparison in this process, since a new one takes seconds to start."""
    job.folder.mkdir(parents=True, exist_ok=True)
    job.before()
    done = CliRunner().invoke(app, job.command[job.command.index("medmvl.cli.main") + 1 :])
    with (job.folder / jobs.LOG).open("a") as log:
        log.write(f"{done.output}{done.exception or ''}")
    return jobs.Outcome(job, done.exit_code, 1.0, 1)


def test_comparison_of_records_holds_no_identifier(medmvl, records: Path, output: Path, monkeypatch) -> None:
    monkeypatch.setattr(jobs, "run_job", run_job_here)
    base = yaml.safe_load(recipe(records, output).read_text())
    del base["run"]["volume_cache"]
    matrix = {"name": "ranks", "recipe": base, "axes": {"rank": {"r2": {"stages.s.train.llm.lora.r": 2}}}}
    matrix["evaluate"] = {
        "benchmarks": ["own"],
        "data_root": str(records / "test.jsonl"),
        "controls": ["blank"],
        "max_new_tokens": 4,
    }
    (output / "matrix.yaml").write_text(yaml.safe_dump(matrix))
    medmvl("compare", "matrix.yaml", "--out", "comparison")
    assert "own" in json.loads((output / "comparison/compare.json").read_text())["benchmarks"]
    assert leaks_below(output, names_only=own_files(records)) == []


def test_shards_of_volumes_hold_no_identifier(medmvl, records: Path, output: Path) -> None:
    medmvl("data", "cache", records / "train.jsonl", "--geometry", "medm-vl-ct", "--out", "shards", "--shards")
    assert leaks_below(output, names_only=own_files(records)) == []


def test_deidentified_copies_hold_no_identifier(medmvl, export: Path, output: Path) -> None:
    pytest.importorskip("dicomanonymizer", reason="the extra deidentify")
    medmvl("data", "deidentify", export, "--out", "copies")
    files = list((output / "copies").rglob("*.dcm"))
    assert len(files) == 16
    assert leaks_below(output) == []


def test_page_keeps_no_file_and_says_no_name(model_folder: Path, export: Path, output: Path) -> None:
    said = []
    with live_page(model_folder) as (_, address):
        visitor = Visitor(address)
        files = [file for file in sorted(export.rglob("*.dcm")) if PATIENTS[0][1] in str(file)]
        found = visitor.send(files, plain_names=True)
        if "series" in found.json():
            said.append(found.text)
            found = visitor.post("open", read={"series": found.json()["series"][0]["series"]})
        assert found.status_code == 200, found.text
        said += [found.text, json.dumps(visitor.ask("Effusion?"))]
        for kind in ("json", "markdown", "pdf"):
            said.append(visitor.http.post("export", json={"format": kind, "version": visitor.version}).text)
    assert not leaks("\n".join(said).encode())
    assert leaks_below(output) == []


def test_results_of_a_study_name_the_patient_in_their_objects_only(export: Path, output: Path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    protocol = {"name": "chest", "series": {"modality": "CT"}, "questions": [{"id": "a", "ask": "What is seen?"}]}
    run_study(
        next(export.glob(f"{PATIENTS[0][0][:4]}*/*/ct")), output / "study", protocol=protocol, answerer=StubAnswerer()
    )
    objects = list((output / "study").glob("*.dcm"))
    assert {pydicom.dcmread(file).PatientID for file in objects} == {PATIENTS[0][1]}  # a PACS files them by the patient
    assert leaks_below(output, names_only=tuple(objects)) == []
    assert not leaks(caplog.text.encode())


def test_node_keeps_identities_in_its_objects_only(export: Path, output: Path, caplog) -> None:
    pytest.importorskip("pynetdicom", reason="the extra ward")
    from medmvl.ward.node.service import Node
    from medmvl.ward.node.status import describe_status, node_status

    caplog.set_level(logging.DEBUG, "medmvl")
    pacs = FakePacs().start()
    settings = {"spool": str(output / "spool"), "port": free_port(), "callers": ["MODALITY"], "quiet_seconds": 0.2}
    questions = [{"id": "a", "ask": "What is seen?"}]
    protocol = make_protocol(
        questions=questions, destinations=[pacs.target()], node=settings, **{"results.send": ["sr"]}
    )
    try:
        with Node(protocol, StubAnswerer).running():
            for folder in sorted(export.glob("*/*/ct")):
                assert set(send(folder, protocol.node.port)) == {0}
            wait_for(lambda: len(pacs.stored) == len(PATIENTS))
            wait_for(lambda: node_status(protocol.node)["deliveries"] == {"pacs: sent": len(PATIENTS)})
            said = describe_status(node_status(protocol.node)) + json.dumps(node_status(protocol.node))
    finally:
        pacs.stop()
    assert {data.PatientID for data in pacs.stored.values()} == {patient[1] for patient in PATIENTS}
    assert not leaks(said.encode())
    assert not leaks(caplog.text.encode())
    objects = [
        file for file in (output / "spool").rglob("*") if file.is_file() and file.read_bytes()[128:132] == b"DICM"
    ]
    assert objects  # received slices and results, which name their patient
    assert leaks_below(output, names_only=tuple(objects)) == []


def test_web_study_leaves_nothing_behind(export: Path, output: Path, caplog, monkeypatch) -> None:
    pytest.importorskip("dicomweb_client", reason="the extra ward")
    from medmvl.ward import dicomweb
    from medmvl.ward.network_settings import WebTarget

    caplog.set_level(logging.DEBUG, "medmvl")
    slices = [pydicom.dcmread(file) for file in sorted(next(export.glob("*/*/ct")).glob("*.dcm"))]
    stored: list[pydicom.Dataset] = []

    class Service:
        """A DICOMweb service with one study, which lists what it stored."""

        def search_for_series(self, uid: str) -> list[dict]:
            return [json.loads(slices[0].to_json()) | {"00080060": {"vr": "CS", "Value": ["CT"]}}]

        def iter_series(self, study: str, series: str):
            return iter(slices)

        def store_instances(self, objects: list[pydicom.Dataset]) -> None:
            stored.extend(objects)

        def search_for_instances(self, *_: object, **__: object) -> list[dict]:
            return [{}]

    monkeypatch.setattr(dicomweb, "connect", lambda target: Service())
    protocol = make_protocol(questions=[{"id": "a", "ask": "What is seen?"}], **{"results.send": ["sr"]})
    uid = slices[0].StudyInstanceUID
    result, deliveries = dicomweb.process_web_study(WebTarget(url="http://pacs"), uid, protocol, StubAnswerer())
    assert [delivery.state for delivery in deliveries] == ["stored"]
    assert {data.PatientID for data in stored} <= {patient[1] for patient in PATIENTS}
    assert not leaks(f"{result.outcome} {result.notes} {deliveries}".encode())
    assert not leaks(caplog.text.encode())
    assert leaks_below(output) == []


def test_search_finds_what_is_planted(tmp_path: Path) -> None:
    (tmp_path / "mrn7731942.txt").write_text(hashlib.sha256(b"ACC55091827").hexdigest()[:16])
    (tmp_path / "a.gz").write_bytes(gzip.compress("Brynhild".encode("utf-16-le")))
    assert len(leaks_below(tmp_path)) == 3
