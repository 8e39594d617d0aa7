"""Tables are read in the delimiters and encodings that spreadsheet programs write."""

from __future__ import annotations

import gzip

import openpyxl
import pytest

from medmvl.data.tables import iter_csv, iter_table, iter_xlsx
from medmvl.errors import DataError

ROW = {"file": "a.png", "answer": "Erguß, links"}


@pytest.mark.parametrize(
    "content",
    [
        'file,answer\na.png,"Erguß, links"\n'.encode(),
        "\ufefffile;answer\r\na.png;Erguß, links\r\n".encode(),
        "file\tanswer\na.png\tErguß, links\n".encode("utf-16"),
        "file|answer\na.png|Erguß, links\n".encode(),
        "sep=;\nfile;answer\na.png;Erguß, links\n".encode(),
        "file;answer\r\na.png;Erguß, links\r\n;\r\n\r\n".encode("cp1252"),
    ],
)
def test_delimiter_and_encoding_are_detected(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    assert list(iter_csv(tmp_path / "t.csv", ["file"], any_encoding=True)) == [ROW]


def test_row_with_too_many_cells_is_no_silent_shift(tmp_path):
    (tmp_path / "t.csv").write_text("file,answer\na.png,Effusion, left\nb.png,none\n")
    with pytest.raises(DataError, match="line 2: has more cells than the header"):
        list(iter_csv(tmp_path / "t.csv"))
    faults = []
    rows = list(iter_csv(tmp_path / "t.csv", on_fault=lambda reason, name: faults.append(name)))
    assert rows == [{"file": "b.png", "answer": "none"}]
    assert faults == ["t.csv, line 2"]


def test_blank_rows_of_a_workbook_are_none(tmp_path):
    book = openpyxl.Workbook()
    for row in (["file", "answer"], ["a.png", "yes"], [None, None], ["", " "]):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    assert list(iter_xlsx(tmp_path / "t.xlsx")) == [{"file": "a.png", "answer": "yes"}]


@pytest.mark.parametrize(
    ("text", "encoding"), [("双肺清晰", "gbk"), ("Легкие чистые", "cp1251"), ("Πνεύμονες καθαροί", "cp1253")]
)
def test_other_scripts_in_old_encodings_are_refused(tmp_path, text, encoding):
    (tmp_path / "t.csv").write_bytes(f"file,answer\na.png,{text}\n".encode(encoding))
    with pytest.raises(DataError, match="neither UTF-8 nor Windows-1252.*--encoding"):
        list(iter_csv(tmp_path / "t.csv", any_encoding=True))


def test_utf16_without_byte_order_mark_is_read(tmp_path):
    (tmp_path / "t.csv").write_bytes("file;answer\na.png;Erguß, links\n".encode("utf-16-le"))
    assert list(iter_csv(tmp_path / "t.csv", any_encoding=True)) == [ROW]


def test_unclosed_quotation_mark_is_a_fault_of_its_row(tmp_path):
    (tmp_path / "t.csv").write_text('file,answer\na.png,"x\ny"\nb.png,5" nodule\nc.png,"open\nd.png,lost\n')
    faults = []
    rows = list(iter_csv(tmp_path / "t.csv", on_fault=lambda reason, name: faults.append((reason, name))))
    assert [row["answer"] for row in rows] == ["x\ny", '5" nodule']
    assert faults == [("row has a quotation mark that is not closed", "t.csv, line 6")]
    with pytest.raises(DataError, match="not closed"):
        list(iter_csv(tmp_path / "t.csv"))


def test_column_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("file,answer,answer\na.png,x,y\n")
    with pytest.raises(DataError, match="2 columns named 'answer'"):
        list(iter_csv(tmp_path / "t.csv", ["file", "answer"]))


GERMAN = "Größere Rundherde, Körper; ältere Brüche über Öse, Übergang, Ärztin"
FRENCH = "Épanchement pleural à gauche, élève, cœur où ça, côté, naïf, hôpital, l\u2019œdème"
SPANISH = "Derrame pequeño, corazón, más, técnica, ¿no?"
SWEDISH = "Små förändringar, hjärta, Åsa, Öron"
POLISH = "Wątroba, żółć, płuca"


@pytest.mark.parametrize("encoding", ["cp437", "cp850", "mac_roman"])
@pytest.mark.parametrize("text", [GERMAN, FRENCH, SPANISH, SWEDISH])
def test_dos_and_macintosh_texts_are_refused_or_read_as_named(tmp_path, text, encoding):
    text = text.encode(encoding, "ignore").decode(encoding)
    (tmp_path / "t.csv").write_bytes(f'file,answer\na.png,"{text}"\n'.encode(encoding))
    with pytest.raises(DataError, match="neither UTF-8 nor Windows-1252"):
        list(iter_csv(tmp_path / "t.csv", any_encoding=True))
    assert [row["answer"] for row in iter_csv(tmp_path / "t.csv", encoding=encoding)] == [text]


def test_central_european_text_is_refused_or_read_as_named(tmp_path):
    (tmp_path / "t.csv").write_bytes(f'file,answer\na.png,"{POLISH}"\n'.encode("cp1250"))
    with pytest.raises(DataError, match="cp1250"):
        list(iter_csv(tmp_path / "t.csv", any_encoding=True))
    assert [row["answer"] for row in iter_csv(tmp_path / "t.csv", encoding="cp1250")] == [POLISH]


@pytest.mark.parametrize(
    "text",
    [
        GERMAN,
        FRENCH,
        SPANISH,
        SWEDISH,
        "3 µm, 5 cm², ±2 °C, 1½ €, „links“ – rechts…",
        "Š. Novák, Žižka, Plavix® (Tür)",
        "§ 3 «mot» ½",
    ],
)
def test_assumed_encoding_is_noted(tmp_path, text):
    (tmp_path / "t.csv").write_bytes(f'file,answer\na.png,"{text}"\n'.encode("cp1252", "ignore"))
    notes = []
    rows = list(iter_csv(tmp_path / "t.csv", any_encoding=True, on_note=notes.append))
    assert rows[0]["answer"] == text.encode("cp1252", "ignore").decode("cp1252")
    assert len(notes) == 1
    assert "Windows-1252" in notes[0]
    assert "--encoding" in notes[0]
    (tmp_path / "t.csv").write_text(f'file,answer\na.png,"{text}"\n', encoding="utf-8")
    assert next(iter_csv(tmp_path / "t.csv", any_encoding=True, on_note=notes.append))["answer"] == text
    assert len(notes) == 1


def test_encoding_that_is_none_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("file,answer\na.png,b\n")
    for name in ("klingon", "base64", "rot13"):
        with pytest.raises(DataError, match="is not known"):
            list(iter_csv(tmp_path / "t.csv", encoding=name))
    with pytest.raises(DataError, match="no text file"):
        iter_table(tmp_path / "t.xlsx", encoding="cp850")
    (tmp_path / "t.csv").write_bytes(b"file,answer\na.png,\x81\n")
    with pytest.raises(DataError, match="is not Windows-1252|not cp1252|not ascii"):
        list(iter_csv(tmp_path / "t.csv", encoding="ascii"))


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-32"])
def test_wide_encodings_are_detected(tmp_path, encoding):
    path = tmp_path / "t.csv"
    path.write_bytes("name,text\nx,Größe\n".encode(encoding))
    assert list(iter_csv(path)) == [{"name": "x", "text": "Größe"}]


def test_compressed_table_is_told_by_its_content(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(gzip.compress(b"name,text\nx,y\n"))
    assert list(iter_csv(path)) == [{"name": "x", "text": "y"}]
