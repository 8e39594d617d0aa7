"""Labels, checked by eye: what is supervised is what stands in a template's generation block, and nothing else."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from medmvl.data.sample import Message
from medmvl.errors import RecipeError
from medmvl.models.labels import IGNORE_INDEX
from medmvl.processing.chat import Placeholder, render, tokenize
from medmvl.processing.templates import load_template, native_template, template_names

ROUNDS = [
    Message("user", "<image>\nIs there a nodule?"),
    Message("assistant", "Yes."),
    Message("user", "Where?"),
    Message("assistant", "Left lung."),
]
IMAGE = {"<image>": Placeholder(token_id=999, tokens=3)}


def supervised_text(tokenizer, template: str) -> list[str]:
    """Return the supervised stretches of ROUNDS as text."""
    ids, labels = tokenize(render(ROUNDS, load_template(template), tokenizer), tokenizer, IMAGE)
    stretches, current = [], []
    for token, label in zip([*ids, None], [*labels, IGNORE_INDEX], strict=True):
        if label != IGNORE_INDEX:
            assert label == token
            current.append(token)
        elif current:
            stretches.append(tokenizer.decode(current))
            current = []
    return stretches


def test_chatml_supervises_the_answers_and_their_ends(tokenizer):
    assert supervised_text(tokenizer, "chatml") == ["Yes.<|im_end|>", "Left lung.<|im_end|>"]


def test_plain_supervises_the_answers_and_their_ends(tokenizer):
    assert supervised_text(tokenizer, "plain") == [" Yes.<|im_end|>", " Left lung.<|im_end|>"]


def test_a_placeholder_becomes_its_tokens_and_is_never_supervised(tokenizer):
    ids, labels = tokenize(render(ROUNDS, load_template("chatml"), tokenizer), tokenizer, IMAGE)
    assert ids.count(999) == 3
    assert 999 not in labels


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_prompt_is_prefix_of_training_text(tokenizer, name):
    template = load_template(name)
    asked = render(ROUNDS[:1], template, tokenizer, ask=True)
    trained = render(ROUNDS[:2], template, tokenizer)
    assert trained.text.startswith(asked.text)
    assert asked.spans == ()


@pytest.mark.parametrize("name", template_names())
def test_every_template_marks_what_to_learn(name):
    assert "generation" in load_template(name)


def test_the_native_template_is_told_by_the_special_tokens(tokenizer):
    assert native_template(tokenizer) == "chatml"


def test_a_broken_template_is_the_users_mistake(tokenizer):
    with pytest.raises(RecipeError, match="cannot render"):
        render(ROUNDS, "{{ messages[99]['content'] }}", tokenizer)


def test_an_unknown_template_is_named_with_the_closest(tokenizer):
    with pytest.raises(RecipeError, match="Did you mean 'chatml'"):
        load_template("chatlm")


def test_threads_render_at_once(tokenizer):
    template = load_template("chatml")
    expected = render(ROUNDS, template, tokenizer)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _: render(ROUNDS, template, tokenizer), range(400)))
    finally:
        sys.setswitchinterval(usual)
    assert set(found) == {expected}
