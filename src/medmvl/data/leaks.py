"""Search for patients and files that training data and held-out data share, by what records say; no media is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from medmvl.data.audit import GROUPS, NAMED, Finding, dataset_name
from medmvl.data.dataset import SampleDataset
from medmvl.data.record import IMAGE_KEYS, VOLUME_KEYS, media_paths
from medmvl.errors import DataError
from medmvl.remote import RemotePath, join

#: Kinds of findings, the most telling first: of each pair of data sets only the first kind that occurs is returned.
_KINDS = (*GROUPS, "image or volume")


def find_leaks(trained: Mapping[str, SampleDataset], held_out: Mapping[str, SampleDataset]) -> list[Finding]:
    """Return what held-out data share with training data; `files` of a finding are the two names, trained first.

    Patients, studies and scans are compared between files of one data set only, as by `medmvl.data.audit.audit`. Records
    that cannot be read are left to the checks that name them.

    Args:
        trained, held_out: name -> records.
    """
    owners: dict[tuple[str, Any], dict[str, str]] = {}
    for name, dataset in held_out.items():
        for record, keys in _keys(dataset):
            for key in keys:
                owners.setdefault(key, {}).setdefault(name, str(record.get("id")))
    shared: dict[tuple[str, str, str], dict[Any, tuple[str, str]]] = {}
    for name, dataset in trained.items():
        for record, keys in _keys(dataset):
            for kind, value in keys:
                for other, identifier in owners.get((kind, value), {}).items():
                    pairs = shared.setdefault((kind, name, other), {})
                    pairs.setdefault(value, (str(record.get("id")), identifier))
    findings: dict[tuple[str, str], Finding] = {}
    for kind, name, other in sorted(shared, key=lambda found: _KINDS.index(found[0])):
        pairs = shared[kind, name, other]
        examples = list(pairs.values())[:NAMED]
        findings.setdefault((name, other), Finding(kind, (name, other), len(pairs), examples))
    return list(findings.values())


def _keys(dataset: SampleDataset) -> Iterator[tuple[dict[str, Any], list[tuple[str, Any]]]]:
    """Yield each record with the (kind, value) by which it is compared."""
    origin = dataset_name(dataset.path)
    for index in range(len(dataset)):
        with suppress(DataError):
            record = dataset.record(index)
            if isinstance(record, dict):
                groups = [(kind, (origin, str(record[kind]))) for kind in GROUPS if record.get(kind)]
                files = [("image or volume", path) for path in _files(record, dataset)]
                yield record, groups + files


def _files(record: dict[str, Any], dataset: SampleDataset) -> Iterator[str]:
    for keys, root in ((IMAGE_KEYS, dataset.image_root), (VOLUME_KEYS, dataset.volume_root)):
        for path in media_paths(record, keys):
            yield join(root, path) if isinstance(root, RemotePath) else os.path.normpath(root / path)
