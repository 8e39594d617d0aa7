"""Synthetic patients: chest CTs and radiographs with findings of known truth, in the layouts of public data sets.

Real medical data cannot be shipped; these drawings can. They teach nothing about medicine, and no number measured on
them is a clinical claim: they show that a pipeline reads, learns and scores what is really in the picture.
"""

from __future__ import annotations

from medmvl.phantoms.captions import write_llava_pretrain
from medmvl.phantoms.ct_rate import save_nifti, write_ct_rate
from medmvl.phantoms.dicom import write_dicom_radiograph, write_dicom_series
from medmvl.phantoms.evidence import write_closed_questions, write_evidence
from medmvl.phantoms.findings import CT_RATE_LABELS, FINDINGS, Finding
from medmvl.phantoms.medmnist import write_medmnist
from medmvl.phantoms.phantom import Phantom, draw_patient, split_patients
from medmvl.phantoms.slake import write_slake
from medmvl.phantoms.texts import Question, Report

#: Of drawings and texts: raised when they change, so that a folder of an earlier version is not continued.
VERSION = 2

__all__ = [
    "CT_RATE_LABELS",
    "FINDINGS",
    "Finding",
    "Phantom",
    "Question",
    "Report",
    "VERSION",
    "draw_patient",
    "save_nifti",
    "split_patients",
    "write_closed_questions",
    "write_ct_rate",
    "write_dicom_radiograph",
    "write_dicom_series",
    "write_evidence",
    "write_llava_pretrain",
    "write_medmnist",
    "write_slake",
]
