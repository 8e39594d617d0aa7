"""Comprehensive 3D SR after TID 1500 "Measurement Report": one measurement group per question."""

from __future__ import annotations

from collections.abc import Sequence

import highdicom.sr as sr
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as SRCode

from medmvl.ward.codes import IMAGING, NO, PROCEDURES, YES, Code, finding_code, private_code, site_code
from medmvl.ward.findings import Finding
from medmvl.ward.key_images import KeyImage
from medmvl.ward.objects.common import inherit, stamp
from medmvl.ward.objects.content import ResultContent
from medmvl.ward.study import MANUFACTURER

_COMMENT = SRCode("121106", "DCM", "Comment")
#: of a choice, the probability of its answer; of a yes-no question, whatever its answer, that of yes
_PROBABILITY, _PROBABILITY_OF_YES = SRCode("122157", "DCM", "Probability"), private_code("Probability of Yes")
_PERCENT = SRCode("%", "UCUM", "Percent")
_ANSWER = private_code("Answer of the model")


def build_report(content: ResultContent, pictures: Sequence[KeyImage], number: int) -> list[Dataset]:
    """Return the structured report, UNVERIFIED and PRELIMINARY.

    A group holds code, site, algorithm, the referenced key slices, and either probability and coded answer or the
    generated answer as text.
    """
    groups = [_group(content, finding, pictures) for finding in content.findings]
    report = sr.MeasurementReport(
        observation_context=_observer(content),
        procedure_reported=_sr(PROCEDURES.get(content.series.modality, IMAGING)),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept(content.words.language[0], "RFC5646", content.words.language[1])
        ),
        referenced_images=None,
    )
    for line in (content.words.notice, *content.notes, *content.algorithm):
        report[0].ContentSequence.append(_text(_COMMENT, line))
    document = sr.Comprehensive3DSR(
        evidence=evidence(pictures),
        content=report[0],
        series_instance_uid=content.uid("report series"),
        series_number=number,
        sop_instance_uid=content.uid("report 1"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
    )
    inherit(content.series.header, document)
    stamp(content, document, "report")
    return [document]


def _observer(content: ResultContent) -> sr.ObservationContext:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=content.uid("device"), name="MedM-VL", manufacturer_name=MANUFACTURER, model_name=content.model[:64]
    )
    context = sr.ObserverContext(
        observer_type=sr.CodedConcept("121007", "DCM", "Device"), observer_identifying_attributes=device
    )
    return sr.ObservationContext(observer_device_context=context)


def _group(
    content: ResultContent, finding: Finding, pictures: Sequence[KeyImage]
) -> sr.MeasurementsAndQualitativeEvaluations:
    question = finding.question
    site = site_code(question.site, question.finding)
    measurements, evaluations = None, None
    if finding.probability is not None:
        yes_no = YES if finding.positive else NO
        scored_yes = question.kind == "yes-no"
        value = yes_no if scored_yes else private_code(finding.answer)
        name = _sr(_PROBABILITY_OF_YES) if scored_yes else _PROBABILITY
        measurements = [sr.Measurement(name, round(finding.probability * 100, 2), _PERCENT)]
        evaluations = [sr.QualitativeEvaluation(_sr(_ANSWER), _sr(value))]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=content.uid(f"tracking {question.id}"), identifier=question.id),
        finding_type=_sr(finding_code(question.finding, question.label)),
        finding_sites=[sr.FindingSite(_sr(site))] if site is not None else None,
        algorithm_id=sr.AlgorithmIdentification(
            name=f"MedM-VL {content.model}"[:64], version=content.version, parameters=content.algorithm[1:]
        ),
        measurements=measurements,
        qualitative_evaluations=evaluations,
        source_images=[
            sr.SourceImageForMeasurementGroup(
                str(picture.instance.header.SOPClassUID),
                picture.instance.uid,
                None if picture.frame is None else [picture.frame],
            )
            for picture in pictures
        ],
    )
    if finding.probability is None:
        group[0].ContentSequence.append(_text(_sr(_ANSWER), finding.answer or "-"))
    return group


def _text(name: SRCode, value: str) -> sr.TextContentItem:
    return sr.TextContentItem(name, value, relationship_type=sr.RelationshipTypeValues.CONTAINS)


def evidence(pictures: Sequence[KeyImage]) -> list[Dataset]:
    """Return what highdicom needs of each referenced image once, with the patient's attributes in UTF-8."""
    found: dict[str, Dataset] = {}
    for picture in pictures:
        source = picture.instance.header
        data = Dataset()
        inherit(source, data)
        data.SOPClassUID, data.SOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
        data.SeriesInstanceUID, data.Modality = source.SeriesInstanceUID, source.get("Modality", "")
        data.Rows, data.Columns = source.Rows, source.Columns
        found[picture.instance.uid] = data
    return list(found.values())


def _sr(code: Code) -> SRCode:
    return SRCode(code.value, code.scheme, code.meaning)
