"""Secondary captures: pages with key slices and text that every viewer shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from medmvl.ward.key_images import KeyImage
from medmvl.ward.objects.common import new_object
from medmvl.ward.objects.content import ResultContent
from medmvl.ward.objects.page import draw_pages


def build_captures(content: ResultContent, pictures: Sequence[KeyImage], number: int) -> list[Dataset]:
    """Return one Secondary Capture image (RGB, 8 bit) per page."""
    pages = draw_pages(content, pictures)
    objects: list[Dataset] = []
    for instance, page in enumerate(pages, start=1):
        data = new_object(content, SecondaryCaptureImageStorage, "OT", "pictures", number, instance)
        data.ConversionType = "WSD"  # workstation
        data.ImageType = ["DERIVED", "SECONDARY"]
        data.PatientOrientation = ""
        data.BurnedInAnnotation = "YES"  # the text of the page; it holds no patient data
        data.ImageComments = content.words.notice
        data.DerivationDescription = "AI-generated, research use only"
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.Rows, data.Columns = page.height, page.width
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
        data.PixelData = np.asarray(page, dtype=np.uint8).tobytes()
        objects.append(data)
    return objects
