"""Tests of the limits on chat templates."""

from __future__ import annotations

import resource
import threading

import pytest

from medmvl.data.sample import Message
from medmvl.errors import RecipeError
from medmvl.processing import chat
from medmvl.processing.time_limit import TimeLimitError, memory_limit, time_limit
from waiting import PATIENCE


def run_for_ever() -> None:
    while True:
        pass


ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


def test_endless_template_is_refused_in_any_thread(tokenizer, monkeypatch):
    monkeypatch.setattr(chat, "TEMPLATE_SECONDS", 0.3)
    found: list[BaseException] = []

    def render() -> None:
        try:
            chat.render([Message("user", "a")], ENDLESS, tokenizer)
        except RecipeError as error:
            found.append(error)

    render()
    thread = threading.Thread(target=render)
    thread.start()
    thread.join(PATIENCE)
    assert [str(error) for error in found] == [
        "The chat template did not end within 0.3 seconds. Use another one (--template)."
    ] * 2


def test_power_in_a_template_is_refused(tokenizer):
    with pytest.raises(RecipeError, match="computes a power"):
        chat.render([Message("user", "a")], "{{ 9 ** 9 ** 9 }}", tokenizer)


def test_template_that_fills_the_memory_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr("medmvl.processing.time_limit.MOST_GROWTH", 2**26)
    doubling = "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    with pytest.raises(RecipeError, match="too much memory"):
        chat.render([Message("user", "a")], doubling, tokenizer)


def test_single_step_that_fills_the_memory_is_refused(tokenizer):
    with pytest.raises(RecipeError, match="too much memory"):
        chat.render([Message("user", "a")], "{{ ('a' * 99999) * 999999 }}", tokenizer)


def test_memory_limit_ends_with_the_last_of_its_blocks():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    outer, inner = memory_limit(), memory_limit()
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_DATA) != before
    with pytest.raises(MemoryError):
        bytearray(2**31)
    inner.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize("text", ["{{ 'a' * 10000000000 }}", "{{ 'a' | center(1234567) }}"])
def test_huge_number_in_a_template_is_refused(tokenizer, text):
    with pytest.raises(RecipeError, match="at most 6 digits"):
        chat.render([Message("user", "a")], text, tokenizer)


def test_limit_ends_with_its_block():
    before = set(threading.enumerate())
    with time_limit(10 * PATIENCE):
        (watcher,) = set(threading.enumerate()) - before
    watcher.join(PATIENCE)
    assert not watcher.is_alive()  # so nothing arrives late
    with pytest.raises(TimeLimitError), time_limit(0.05):
        run_for_ever()
