"""DICOM files: finding series, reading headers and pixels, and assembling volumes and images."""

from medmvl.imaging.dicom.dataset import looks_like_dicom
from medmvl.imaging.dicom.image import read_dicom_image
from medmvl.imaging.dicom.stack import Gaps
from medmvl.imaging.dicom.volume import read_dicom_volume

__all__ = ["Gaps", "looks_like_dicom", "read_dicom_image", "read_dicom_volume"]
