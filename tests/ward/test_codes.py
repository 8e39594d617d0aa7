"""The vocabulary of findings."""

from __future__ import annotations

import pytest
from pydicom.sr._concepts_dict import concepts

from medmvl.errors import WardError
from medmvl.ward.codes import FINDINGS, finding_code, private_code, site_code
from medmvl.ward.protocol import CodeSpec


def test_codes_agree_with_the_dicom_dictionary_where_it_has_them():
    known = {scheme: {value for entry in names.values() for value in entry} for scheme, names in concepts.items()}
    shared = [code for code, _ in FINDINGS.values() if code.value in known[code.scheme]]
    assert len(shared) >= 8
    for code in shared:
        meanings = [entry[code.value][0].lower() for entry in concepts[code.scheme].values() if code.value in entry]
        assert any(code.meaning.lower() in meaning or meaning in code.meaning.lower() for meaning in meanings), code


def test_unknown_finding_gets_a_private_code():
    code = finding_code("Tree-in-bud pattern", "label")
    assert (code.scheme, code.meaning) == ("99MEDMVL", "Tree-in-bud pattern")
    assert code == private_code("Tree-in-bud pattern")
    assert len(code.value) <= 16


def test_given_code_is_used():
    assert finding_code(CodeSpec(value="RID1301", scheme="RADLEX", meaning="lung"), "x").scheme == "RADLEX"


def test_site_is_the_usual_one_of_a_finding():
    assert site_code(None, "Cardiomegaly").meaning == "Heart"
    assert site_code(None, "unheard of") is None
    with pytest.raises(WardError, match="Unknown site 'lungg'. Did you mean 'lung'"):
        site_code("lungg", None)
