"""Questions of the training data that a checkpoint stores, with the options of the closed ones."""

from __future__ import annotations

from dataclasses import replace

from medmvl.data.record import parse_record
from medmvl.files import read_json, write_json
from medmvl.processing.stored_prompts import collect_prompts, read_prompts


def sample(patient, question, answer):
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    record = {"id": f"{patient}-{question}", "conversations": turns, "image": ["a.png"], "patient": f"p{patient}"}
    return parse_record(record, "here")


def options_of(samples):
    (task,) = collect_prompts([("vqa", samples)]).tasks
    return {prompt.text: prompt.options for prompt in task.prompts}


def test_answers_that_are_common_in_the_data_are_options():
    answers = {"Effusion?": "yyn", "Nodule?": "nny", "Emphysema?": "nnn"}
    words = {"y": "Yes", "n": "No"}
    samples = [sample(n, text, words[one]) for text, given in answers.items() for n, one in enumerate(given)]
    assert options_of(samples) == {"Effusion?": ("Yes", "No"), "Nodule?": ("No", "Yes"), "Emphysema?": ()}


def test_answer_of_one_patient_is_no_option():
    samples = [sample(n, "What is seen?", "A rare tumor" if n == 0 else "Nothing") for n in range(5)]
    samples += [sample(0, f"What is seen on slice {n}?", "A rare tumor") for n in range(5)]
    assert options_of(samples) == {"What is seen?": ()}


def test_dialogs_are_records_about_pictures_with_several_questions():
    single = [sample(n, "Effusion?", "Yes") for n in range(3)]
    turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hello"}] * 2
    chat = parse_record({"id": "chat", "conversations": turns}, "here")
    turns = [{"from": "human", "value": "<image>\nEffusion?"}, *turns[1:]]
    dialog = parse_record({"id": "dialog", "conversations": turns, "image": ["a.png"]}, "here")
    found = [collect_prompts([("vqa", samples)]).dialogs for samples in ([chat], single, [*single, chat, dialog])]
    assert found == [None, False, True]


def test_dialogs_of_older_checkpoints_are_not_known(tmp_path):
    stored = collect_prompts([("vqa", [sample(n, "Effusion?", "Yes") for n in range(3)])])
    stored.save(tmp_path)
    assert read_prompts(tmp_path) == stored
    older = read_json(tmp_path / "prompts.json")
    del older["dialogs"]
    write_json(tmp_path / "prompts.json", older)
    assert read_prompts(tmp_path) == replace(stored, dialogs=None)
