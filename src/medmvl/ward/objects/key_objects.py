"""Key Object Selection: the slices that the results show, for viewers that jump to them."""

from __future__ import annotations

from collections.abc import Sequence

import highdicom.ko as ko
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as SRCode

from medmvl.ward.key_images import KeyImage
from medmvl.ward.objects.common import inherit, stamp
from medmvl.ward.objects.content import ResultContent
from medmvl.ward.objects.report import evidence
from medmvl.ward.study import MANUFACTURER

_FOR_RESEARCH = SRCode("113009", "DCM", "For Research")


def build_key_objects(content: ResultContent, pictures: Sequence[KeyImage], number: int) -> list[Dataset]:
    """Return one Key Object Selection Document with the title "For Research"."""
    images = evidence(pictures)
    selection = ko.KeyObjectSelection(
        document_title=_FOR_RESEARCH, referenced_objects=images, description=content.words.notice
    )
    document = ko.KeyObjectSelectionDocument(
        evidence=images,
        content=selection,
        series_instance_uid=content.uid("key objects series"),
        series_number=number,
        sop_instance_uid=content.uid("key objects 1"),
        instance_number=1,
        manufacturer=MANUFACTURER,
    )
    inherit(content.series.header, document)
    stamp(content, document, "key objects")
    return [document]
