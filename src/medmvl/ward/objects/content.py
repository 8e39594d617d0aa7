"""Content of the results, independent of the kind of DICOM object."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime

from pydicom.uid import UID

import medmvl
from medmvl.ward.findings import Finding, percent
from medmvl.ward.protocol import Protocol
from medmvl.ward.study import Series, Study
from medmvl.ward.wording import WORDINGS, Wording


@dataclass(frozen=True)
class ResultContent:
    """Findings of one study with everything needed to state where they come from.

    Attributes:
        model, fingerprint: name of the model and SHA-256 of its files.
        identity: UUID that all UIDs of the objects derive from.
        findings: those to send.
        warnings: those of the reader of the series.
        moment: time stamp of the objects.
    """

    study: Study
    series: Series
    protocol: Protocol
    model: str
    fingerprint: str
    identity: str
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...] = ()
    moment: datetime = field(default_factory=datetime.now)

    @property
    def words(self) -> Wording:
        """The fixed texts in the protocol's language."""
        return WORDINGS[self.protocol.results.language]

    @property
    def version(self) -> str:
        """Version of this software."""
        return medmvl.__version__

    @property
    def algorithm(self) -> list[str]:
        """Three lines: software, model and protocol, with their hashes."""
        return [
            f"MedM-VL {self.version}",
            f"model {self.model}, SHA-256 {self.fingerprint}",
            f"protocol {self.protocol.name}, SHA-256 {self.protocol.hash}",
        ]

    @property
    def notes(self) -> list[str]:
        """Sentences below the findings."""
        return [f"{self.words.series}: {self.series.describe()}.", *self.warnings]

    def lines(self) -> list[str]:
        """Return each finding as text: "pleural effusion: No (probability of Yes: 41 %)"."""
        return [f"{finding.question.label}: {self._answer(finding)}" for finding in self.findings]

    def table(self) -> list[tuple[str, str, str]]:
        """Return label, answer and probability of each finding as text, below a row of headings.

        The heading says which option the probabilities are of; if they are of several, each cell does.
        """
        words = self.words
        options = {finding.option for finding in self.findings} - {None}
        shared = options.pop() if len(options) == 1 else None
        heading = words.probability if shared is None else words.probability_of.format(option=shared)
        rows = [(finding.question.label, finding.answer, _share(finding, shared)) for finding in self.findings]
        return [(words.finding, words.answer, heading), *rows]

    def _answer(self, finding: Finding) -> str:
        if finding.probability is None:
            return finding.answer
        share = percent(finding.probability)
        return self.words.scored.format(answer=finding.answer, option=finding.option, share=share)

    def uid(self, purpose: str) -> UID:
        """Return the UID of an object or series; equal results get equal UIDs (UUID-derived, PS3.5 B.2)."""
        return UID(f"2.25.{uuid.uuid5(uuid.UUID(self.identity), purpose).int}")

    def series_numbers(self, count: int) -> list[int]:
        """Return `count` successive series numbers that the study does not use."""
        first = self.protocol.results.series_number
        while any(number in self.study.numbers for number in range(first, first + count)):
            first += 100
        return list(range(first, first + count))


def _share(finding: Finding, shared: str | None) -> str:
    """Return the probability as text, with its option unless that is `shared` by all findings; "" if generated."""
    if finding.probability is None:
        return ""
    share = percent(finding.probability)
    return share if finding.option == shared else f"{finding.option}: {share}"
