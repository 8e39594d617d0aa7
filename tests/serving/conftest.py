"""A page and a visitor of it, for the tests that need no browser."""

from __future__ import annotations

import pytest
from tests.serving.page_live import Visitor, live_page


@pytest.fixture(scope="module")
def served(model_folder):
    """The page of a tiny model, and its address."""
    with live_page(model_folder) as (page, address):
        yield page, address


@pytest.fixture
def visitor(served) -> Visitor:
    """A visitor with a new session."""
    return Visitor(served[1])
