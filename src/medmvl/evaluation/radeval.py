"""Clinical report metrics through RadEval (extra `radeval`): RadGraph, CheXbert, RadBERT-CT, RaTEScore, GREEN, CRIMSON.

All of them are models whose weights come from a hub at their first use, so they run only where RadEval is installed and
its weights are in the local cache or can be fetched. Metrics that send reports to a commercial service are not offered:
reports are patient data. RadEval's numbers are its own; here they get n and, where RadEval gives a value per report, a
bootstrap interval over patients. GREEN runs code from its hub repository, because RadEval requests it; leave it out
where this is not allowed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from medmvl.errors import EvaluationError, did_you_mean, require
from medmvl.evaluation.items import Item, group_by_patient
from medmvl.evaluation.metrics.metric import mean_of_sums
from medmvl.evaluation.statistics import bootstrap_interval, cluster_sums

#: our name -> RadEval's metric and its settings; names as in RadEval 2.2
LOCAL_METRICS: Mapping[str, Mapping[str, Any]] = {
    "radgraph": {},
    "f1chexbert": {},
    "f1radbert_ct": {},
    "ratescore": {},
    "radcliq": {},
    "srrbert": {},
    "temporal": {},
    "green": {},
    "bertscore": {},
    "crimson": {"provider": "hf"},  # its other provider is a commercial service
}
#: metrics of which RadEval gives no F1 per report, only over all of them
_CORPUS_ONLY = ("f1chexbert", "f1radbert_ct", "srrbert")


def check_metrics(names: Sequence[str]) -> list[str]:
    """Return the names after checking that each is a metric that runs locally.

    Raises:
        EvaluationError: for another name.
    """
    for name in names:
        if name not in LOCAL_METRICS:
            raise EvaluationError(f"Unknown RadEval metric {name!r}. {did_you_mean(name, LOCAL_METRICS)}")
    return list(names)


def radeval_scores(items: Sequence[Item], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Score reports with RadEval: {"radeval_<key>": {"value", "n", "ci95"}}.

    Args:
        items: reports; those with an empty side are left out, because RadEval cannot score them, and not counted.
        names: of `LOCAL_METRICS`.

    Raises:
        MissingExtraError: without the package.
        EvaluationError: for an unknown name, or if a metric cannot load its weights.
    """
    if not check_metrics(names):
        return {}
    module = _package()
    kept = [item for item in items if item.prediction.strip() and item.reference.strip()]
    scores: dict[str, dict[str, Any]] = {}
    for name in names if kept else ():
        found = _run(module, name, kept, per_sample=name not in _CORPUS_ONLY)
        scores.update({f"radeval_{key}": _entry(value, kept) for key, value in found.items() if _is_number(value)})
    return scores


def _package() -> Any:
    """Return the package; its RadGraph code imports itself as "RadEval" (2.2.1, issue 27), so that name is given, too."""
    module = require("radeval", "radeval")
    sys.modules.setdefault("RadEval", module)
    return module


def _run(module: Any, name: str, items: Sequence[Item], *, per_sample: bool) -> dict[str, Any]:
    references, hypotheses = [item.reference for item in items], [item.prediction for item in items]
    try:
        scorer = module.RadEval(metrics={name: dict(LOCAL_METRICS[name])}, per_sample=per_sample, show_progress=False)
        return dict(scorer(refs=references, hyps=hypotheses))
    except ImportError as error:
        missing = error.name or str(error)
        raise EvaluationError(
            f"RadEval's {name!r} needs the package {missing!r}, which is not installed. Install everything it needs with: "
            "pip install 'medmvl[radeval]', or leave this metric out."
        ) from error
    except Exception as error:
        # Every metric has its own way to say that the hub is out of reach, a bare Exception among them.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EvaluationError(
            f"RadEval could not run {name!r}: {reason} Its weights come from a hub: run it once where that can be "
            "reached, copy the Hugging Face cache to this machine (HF_HOME), or leave this metric out."
        ) from error


def radeval_scorers(keys: Sequence[str], items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """Return what results.json says about the scorers behind `radeval_...` keys."""
    if not keys:
        return {}
    empty = sum(not item.prediction.strip() for item in items)
    dropped = sum(not (item.prediction.strip() and item.reference.strip()) for item in items)
    return {
        key: {
            "name": key.replace("_", "-"),
            "version": f"RadEval {version('radeval')}",
            "definition": f"{key.removeprefix('radeval_')} as RadEval computes it; items with an empty side are dropped.",
            "dropped": dropped,
            "empty": empty,
        }
        for key in keys
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, list) and bool(value) and _is_number(value[0]))


def _entry(value: Any, items: Sequence[Item]) -> dict[str, Any]:
    """Return value, n and interval of one of RadEval's results: a number, or a list with one per report."""
    if not isinstance(value, list):
        return {"value": float(value), "n": len(items), "ci95": None}
    pairs = [(item, float(one)) for item, one in zip(items, value, strict=True) if one is not None]
    pairs = [(item, one) for item, one in pairs if not math.isnan(one)]
    rows = np.array([(one, 1.0) for _, one in pairs])
    sums = cluster_sums(rows, list(group_by_patient([item for item, _ in pairs]).values()))
    ci95 = bootstrap_interval(sums, mean_of_sums)
    return {"value": float(rows[:, 0].mean()), "n": len(pairs), "ci95": None if ci95 is None else list(ci95)}
