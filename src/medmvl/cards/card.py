"""The text of a model card, and its place in a checkpoint folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from medmvl.cards.facts import Base, ModelFacts, collect_facts
from medmvl.cards.statements import Statements
from medmvl.errors import OutputError
from medmvl.files import PathLike, existing_folder, write_text

#: The hub shows the README of a model's folder as its card.
CARD_FILE = "README.md"

#: A card that this module wrote has this line; a README without it is somebody's own text.
_MARK = "<!-- Written by `medmvl checkpoint card`. -->"

_CLOSED = "closed_accuracy"

#: Statements that a reader misses where they are not made.
_WANTED = (
    *(
        "developer",
        "contact",
        "license",
        "release_stage",
        "intended_use",
        "primary_users",
        "patient_population",
        "out_of_scope",
    ),
    *("known_limitations", "known_biases", "clinical_risk_level", "bias_mitigation", "maintenance"),
)


def card_text(
    folder: PathLike,
    statements: Statements | None = None,
    results: Mapping[str, Any] | None = None,
    results_table: str = "",
    base_table: str = "",
) -> str:
    """Return the model card of a checkpoint folder as Markdown with the hub's metadata.

    Args:
        folder: the checkpoint.
        statements: what its developer states; what is missing is shown as not stated.
        results: content of a results.json of `medmvl evaluate`, for the metadata.
        results_table: the same as the Markdown of table.md, with intervals and controls.
        base_table: the same scores as Markdown beside those of the model that it was fine-tuned from.

    Raises:
        CheckpointError: if the folder is not a MedM-VL checkpoint.
    """
    stated = statements or Statements()
    facts = collect_facts(existing_folder(folder))
    name = stated.name or facts.name
    environment = Environment(
        loader=PackageLoader("medmvl.cards"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters |= {"cell": _cell, "recorded": _recorded}
    text = environment.get_template("model_card.md.jinja").render(
        metadata=_metadata(name, facts, stated, results).to_yaml(),
        mark=_MARK,
        name=name,
        facts=facts,
        stated=stated,
        unstated=[name for name in _WANTED if not _is_stated(stated, name)],
        base_table=base_table.strip(),
        results_table=results_table.removeprefix("# Results").replace("\n## ", "\n### ").strip(),
    )
    # What is not stated leaves empty lines behind.
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def write_card(
    folder: PathLike,
    statements: Statements | None = None,
    results: Mapping[str, Any] | None = None,
    results_table: str = "",
    base_table: str = "",
    *,
    replace: bool = False,
) -> Path:
    """Write the model card of a checkpoint folder into it; arguments as for `card_text`.

    Args:
        replace: whether a README that somebody else wrote may be replaced.

    Raises:
        OutputError: if there is such a README and `replace` is not set.
    """
    file = Path(folder) / CARD_FILE
    text = card_text(folder, statements, results, results_table, base_table)
    if file.is_file() and not replace and _MARK not in file.read_text(encoding="utf-8", errors="replace"):
        raise OutputError(f"{file} was not written by this command. Move it away, or replace it with --force.")
    write_text(file, text)
    return file


def _metadata(name: str, facts: ModelFacts, stated: Statements, results: Mapping[str, Any] | None) -> ModelCardData:
    measured = [
        EvalResult(
            task_type="visual-question-answering",
            dataset_type=benchmark,
            dataset_name=_data_name(entry),
            metric_type=metric,
            metric_value=round(entry["model"][metric]["value"], 4),
        )
        for benchmark, entry in (results or {}).get("benchmarks", {}).items()
        for metric in _main_metrics(entry)
    ]
    options: dict[str, Any] = {"eval_results": measured, "model_name": name} if measured else {}
    hub_names = [base.name for base in facts.base if _is_hub_name(base)]
    return ModelCardData(
        license=stated.license,
        language=list(stated.language) or None,
        base_model=hub_names or None,
        pipeline_tag="image-text-to-text",
        library_name="transformers",
        tags=["medmvl", "medical", *(["synthetic-data"] if facts.synthetic or facts.synthetic_bases else [])],
        **options,
    )


def _data_name(entry: Mapping[str, Any]) -> str:
    """Return the title of a benchmark with the size of its data, and whether they are synthetic, as far as results say."""
    counts = entry.get("counts") or {}
    size = " of ".join(f"{counts[key]} {key}" for key in ("records", "patients") if key in counts)
    known = [*([size] if size else []), *(["synthetic data"] if entry.get("synthetic") else [])]
    return f"{entry['title']} ({', '.join(known)})" if known else str(entry["title"])


def _main_metrics(entry: Mapping[str, Any]) -> list[str]:
    """Return the metrics for the metadata: the headline, after closed accuracy where most questions are closed."""
    scores, headline = entry["model"], str(entry.get("headline"))
    closed = (scores.get(_CLOSED) or {}).get("n", 0)
    asked = (entry.get("counts") or {}).get("records", closed)
    first = [_CLOSED] if 2 * closed > asked else []
    return list(dict.fromkeys([*first, *([headline] if headline in scores else [])]))


def _is_hub_name(base: Base) -> bool:
    return not base.local and base.name.count("/") == 1 and not base.name.startswith((".", "/", "~"))


def _cell(value: object) -> str:
    """Return a value as the cell of a Markdown table: one line, in which nothing is markup."""
    text = " ".join(str(value).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _recorded(value: object) -> object:
    """Return a fact, yes and no in words; "not recorded" if it is not known."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not recorded" if value is None or value == "" else value


def _is_stated(stated: Statements, name: str) -> bool:
    return bool((getattr(stated, name) or "").strip())
