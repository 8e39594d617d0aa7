"""The choice of a series by the rule of a protocol, with a reason for each series that is not taken."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from medmvl.errors import counted
from medmvl.ward.protocol import VOLUME_MODALITIES, Preference, SeriesRule
from medmvl.ward.study import Series, Study, text


@dataclass(frozen=True)
class Choice:
    """Result of the selection.

    Attributes:
        series: None if no series fits.
        reasons: one sentence per series that was not taken, without patient data.
    """

    series: Series | None
    reasons: tuple[str, ...]


def choose_series(study: Study, rule: SeriesRule) -> Choice:
    """Return the series that fits the rule best; equal ones are decided by UID, so that the choice is repeatable."""
    reasons: list[str] = []
    fitting: list[Series] = []
    for series in study.series:
        fault = misfit(series, rule)
        if fault is None:
            fitting.append(series)
        else:
            reasons.append(f"{series.describe()}: {fault}")
    if not fitting:
        return Choice(None, tuple(reasons) or ("the study holds no series of images",))
    fitting.sort(key=lambda series: (*(_rank(series, rule, wish) for wish in rule.prefer), series.uid))
    reasons += [f"{series.describe()}: another series is preferred" for series in fitting[1:]]
    return Choice(fitting[0], tuple(reasons))


def reads_as_volume(series: Series, rule: SeriesRule) -> bool:
    """Whether a series is read as a volume rather than as images."""
    return rule.read_as == "volume" if rule.read_as is not None else series.modality in VOLUME_MODALITIES


def misfit(series: Series, rule: SeriesRule) -> str | None:
    """Return why a series does not fit the rule, None if it does."""
    if series.modality not in rule.modality:
        return f"modality is not {' or '.join(rule.modality)}"
    if rule.body_part and text(series.header, "BodyPartExamined").upper() not in map(str.upper, rule.body_part):
        return f"body part is not stated as {' or '.join(rule.body_part)}"
    description = text(series.header, "SeriesDescription")
    if rule.description and not _matches(description, rule.description):
        return "its description matches none of the wanted patterns"
    if _matches(description, rule.exclude_description):
        return "its description matches an excluded pattern"
    if rule.kernel and _kernel_rank(series, rule) == len(rule.kernel):
        return "its kernel matches none of the wanted patterns"
    if rule.orientation is not None and series.plane != rule.orientation:
        return f"its slices are not {rule.orientation}"
    if rule.slice_thickness is not None and (series.thickness is None or series.thickness not in rule.slice_thickness):
        return "its slice thickness is not within the limits"
    if series.slices < rule.min_slices:
        return f"it has {counted(series.slices, 'slice')}, fewer than {rule.min_slices}"
    return None


def _matches(value: str, patterns: list[str]) -> bool:
    return any(fnmatch(value.lower(), pattern.lower()) for pattern in patterns)


def _kernel_rank(series: Series, rule: SeriesRule) -> int:
    """Index of the first pattern that matches the kernel; the number of patterns if none does."""
    kernel = text(series.header, "ConvolutionKernel")
    ranks = (index for index, pattern in enumerate(rule.kernel) if _matches(kernel, [pattern]))
    return next(ranks, len(rule.kernel))


def _rank(series: Series, rule: SeriesRule, wish: Preference) -> float:
    """Return a number that is smaller for a series that meets the wish better."""
    if wish == "kernel":
        return _kernel_rank(series, rule)
    if wish == "most-slices":
        return -series.slices
    if wish == "newest":
        moment = text(series.header, "SeriesDate") + text(series.header, "SeriesTime").split(".")[0].ljust(6, "0")
        return -float(moment) if moment.isdigit() else 0.0
    if series.thickness is None:
        return float("inf")
    return series.thickness if wish == "thinnest" else -series.thickness
