"""Records become Samples, or a DataError that says where and what."""

from __future__ import annotations

import json

import pytest

from medmvl.data.dataset import SampleDataset
from medmvl.data.formats import iter_located, read_records, read_samples, write_records
from medmvl.data.record import parse_record, to_record
from medmvl.errors import DataError
from medmvl.files import resolve_under


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


RECORD = {
    "id": "a",
    "conversations": turns("<image>\nWhat is it? <volume>", "A lung."),
    "image": "x.png",
    "volume": ["v.nii.gz"],
    "answer": "lung",
    "question_type": "closed",
}


def test_a_record_becomes_a_sample_and_goes_back():
    sample = parse_record(RECORD, "f, line 1")
    assert [(m.role, m.text) for m in sample.messages] == [
        ("user", "<image>\nWhat is it? <image3d>"),
        ("assistant", "A lung."),
    ]
    assert (sample.images, sample.volumes, sample.answer) == (("x.png",), ("v.nii.gz",), "lung")
    assert sample.extra == {"question_type": "closed"}
    assert parse_record(to_record(sample), "again") == sample


def test_chat_style_messages_mean_the_same_as_conversations():
    record = {
        "id": 7,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "image", "path": "x.png"}, {"type": "text", "text": "What?"}],
            },
            {"role": "assistant", "content": "A lung."},
        ],
    }
    sample = parse_record(record, "f")
    assert sample.id == "7"
    assert sample.images == ("x.png",)
    assert [m.text for m in sample.messages] == ["Be brief.", "<image>\nWhat?", "A lung."]


@pytest.mark.parametrize("first", [{"from": "system", "value": ""}, {"from": "gpt", "value": "Hello."}])
def test_an_empty_system_turn_and_a_greeting_may_stand_first(first):
    sample = parse_record({"id": 1, "conversations": [first, *turns("Is it normal?", "Yes.")]}, "f")
    assert [m.text for m in sample.messages] == [first["value"], "Is it normal?", "Yes."]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": None}, "has no 'id'"),
        ({"image": ["x.png", "y.png"]}, "1 <image> placeholder, and 'image' lists 2"),
        ({"volume": None}, "1 <image3d> placeholder, and 'image3d' lists 0"),
        ({"conversations": turns("<image> <image3d> What?", "  ")}, "empty answer"),
        ({"conversations": []}, "at least one turn"),
        ({"conversations": None, "conversation": turns("a")}, "Did you mean 'conversations'?"),
        (
            {"conversations": None, "image": ["a.png"], "conversation": turns("a")},
            "The key 'conversation' is not known. Did you mean 'conversations'?",
        ),
        ({"image": None, "imgae": ["a.png"]}, "'imgae' is not known. Did you mean 'image'?"),
        ({"conversations": turns("a", "b")[::-1]}, "assistant → user"),
        ({"conversations": [{"from": "doctor", "value": "x"}]}, "'doctor'"),
        ({"conversations": turns("hello", "see <image>")}, "placeholders belong into questions"),
        ({"image3d": ["v"]}, "both 'image3d' and 'volume'"),
        ({"image": 3}, "'image' must be a path"),
        ({"answer": 5}, "'answer' must be a string"),
        ({"answer": " "}, "'answer' is empty"),
        ({"messages": [{"role": "user", "content": "x"}]}, "both 'conversations' and 'messages'"),
    ],
)
def test_a_faulty_record_is_refused_with_place_and_reason(change, words):
    with pytest.raises(DataError) as caught:
        parse_record(RECORD | change, "train.jsonl, line 3")
    assert words in str(caught.value)
    assert "train.jsonl, line 3" in str(caught.value)


def test_part_of_unknown_type_names_the_allowed_ones():
    record = {"id": "a", "messages": [{"role": "user", "content": [{"type": "audio", "path": "x"}]}]}
    with pytest.raises(DataError, match="Allowed part types: text, image, image3d, volume"):
        parse_record(record, "f")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_files_of_all_three_formats_read_back_the_same(tmp_path, suffix):
    records = [to_record(parse_record(RECORD | {"id": str(i)}, "f")) for i in range(5)]
    records[2] = {"id": "text", "conversations": turns("hi", "hello"), "side": "left"}
    write_records(tmp_path / f"r{suffix}", records)
    assert list(read_records(tmp_path / f"r{suffix}")) == records
    assert next(read_samples(tmp_path / f"r{suffix}")).id == "0"


def test_parquet_refuses_a_field_of_two_types(tmp_path):
    rows = [{"id": "a", "boxes": [1]}, {"id": "b", "boxes": "none"}]
    with pytest.raises(DataError, match="different types"):
        write_records(tmp_path / "r.parquet", rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello", "neither a JSON array"),
        (b'{"id": "a"}\n{"id": ', "line 2: not valid"),
        (b'[{"id": "a"}', "not a valid UTF-8 JSON array"),
        (b"PAR1 is not enough", "not a readable Parquet file"),
        (b'{"id": "\xff"}', "line 1: not valid UTF-8"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, words):
    file = tmp_path / "data.bin"
    file.write_bytes(content)
    with pytest.raises(DataError, match=words):
        list(read_records(file))


def test_format_is_seen_by_content_not_by_suffix(tmp_path):
    file = tmp_path / "lines.json"
    file.write_text("\n".join(json.dumps(RECORD | {"id": str(i)}) for i in range(3)))
    assert [r["id"] for r in read_records(file)] == ["0", "1", "2"]


ODD = {
    "5000 digits": '{"id": "h", "n": ' + "9" * 5000 + "}",
    "deep nesting": '{"id": "h", "n": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "half a surrogate pair": '{"id": "h", "conversations": [{"from": "human", "value": "\\ud83d?"}]}',
    "not a number": '{"id": "h", "conversations": [{"from": "human", "value": "a?"}], "age": NaN}',
    "a list as speaker": '{"id": "h", "conversations": [{"from": ["human"], "value": "a?"}]}',
    "a list as part type": '{"id": "h", "messages": [{"role": "user", "content": [{"type": ["image"]}]}]}',
    "nested extra": '{"id": "h", "conversations": [{"from": "human", "value": "a?"}], "n": '
    + "[" * 150
    + "]" * 150
    + "}",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
@pytest.mark.parametrize("array", [False, True])
def test_odd_record_is_one_fault_and_others_are_read(tmp_path, text, array):
    good = json.dumps({"id": "g", "conversations": turns("a?", "b")})
    file = tmp_path / "d.json"
    file.write_text(f"[{text},\n{good}]" if array else f"{text}\n{good}\n")
    faults, ids = [], []
    for located in iter_located(file):
        try:
            if located.error is not None:
                raise located.error
            ids.append(parse_record(located.record, located.where).id)
        except DataError as error:
            faults.append(str(error))
    assert ids == ["g"]
    assert len(faults) == 1
    assert len(faults[0]) < 400


def test_blank_image_of_a_table_is_no_image():
    assert parse_record({"id": "a", "conversations": turns("a?", "b"), "image": ""}, "f").images == ()
    with pytest.raises(DataError, match="entry 1 of 'image' is empty"):
        parse_record({"id": "a", "conversations": turns("<image><image>", "b"), "image": ["x.png", " "]}, "f")


def test_pixels_are_not_shown_in_messages():
    for image in ({"bytes": b"\x89PNG" * 1000, "path": None}, b"\x89PNG" * 1000):
        with pytest.raises(DataError, match="data convert folder") as caught:
            parse_record({"id": "a", "conversations": turns("<image>a?", "b"), "image": image}, "f")
        assert len(str(caught.value)) < 300
    with pytest.raises(DataError, match="data URI of 4022 characters"):
        resolve_under("/tmp", "data:image/png;base64," + "A" * 4000, "image")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_path_no_file_system_takes_is_a_fault(tmp_path, name):
    with pytest.raises(DataError, match="cannot be used"):
        resolve_under(tmp_path, name, "image")


@pytest.mark.parametrize("twice", ['"answer": "no", "answer": "yes"', '"extra": {"side": "left", "side": "right"}'])
def test_key_that_stands_twice_is_a_fault_of_its_record(tmp_path, twice):
    good = json.dumps(RECORD)
    bad = good.replace('"answer": "lung"', twice)
    (tmp_path / "a.jsonl").write_text(f"{good}\n{bad}\n{good}\n")
    (tmp_path / "a.json").write_text(f"[{good},\n{bad},\n{good}]")
    for name, place in (("a.jsonl", "a.jsonl, line 2"), ("a.json", "a.json, item 2")):
        found = list(iter_located(tmp_path / name))
        assert [item.error is None for item in found] == [True, False, True]
        assert str(found[1].error).startswith(f"{place}: ")
        assert "twice" in str(found[1].error)
        with pytest.raises(DataError, match=place):
            SampleDataset(tmp_path / name)[1]
