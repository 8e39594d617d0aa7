"""Evidence for a sentence of an answer: occlusion of the input, and attention as a quick preview."""

from medmvl.inference.evidence.explain import Cancel, Explained, Explainer, ExplainRequest, Watch
from medmvl.inference.evidence.places import opened
from medmvl.inference.evidence.result import METHODS, Evidence, ExplainOptions, Target
from medmvl.inference.evidence.writing import heat_nifti, lay_over, overlay, save_evidence

__all__ = [
    "METHODS",
    "Cancel",
    "Evidence",
    "ExplainOptions",
    "ExplainRequest",
    "Explained",
    "Explainer",
    "Target",
    "Watch",
    "heat_nifti",
    "lay_over",
    "opened",
    "overlay",
    "save_evidence",
]
