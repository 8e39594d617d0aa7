"""File formats other than DICOM: NIfTI, numpy arrays, NRRD/MetaImage and picture files."""

from medmvl.imaging.formats.arrays import read_array_volume
from medmvl.imaging.formats.itk import read_itk
from medmvl.imaging.formats.nifti import read_nifti
from medmvl.imaging.formats.pictures import read_array_image, read_picture

__all__ = ["read_array_image", "read_array_volume", "read_itk", "read_nifti", "read_picture"]
