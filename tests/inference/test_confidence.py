"""Which answers are short enough that their confidence is shown to people."""

from __future__ import annotations

import pytest

from medmvl.inference.confidence import is_telling


@pytest.mark.parametrize(
    ("answer", "telling"),
    [
        ("Yes", True),
        ("", True),
        ("(b) It is not present", True),
        ("是的。", True),
        ("左肺上叶可见结节", True),
        ("{<9><12><46><82>}", False),
        ("Heart: { <9> <12> <46> <82> }", False),
        ("The lungs are clear. No effusion.", False),
        ("双肺纹理清晰，心影不大，未见胸腔积液。", False),
    ],
)
def test_short_answers_without_boxes_are_telling(answer, telling):
    assert is_telling(answer) == telling
