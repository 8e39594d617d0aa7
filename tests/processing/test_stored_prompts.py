"""Questions of the training data that a checkpoint stores, with the options of the closed ones."""

from __future__ import annotations

from medmvl.data.record import parse_record
from medmvl.processing.stored_prompts import collect_prompts


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
