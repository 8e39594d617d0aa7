"""Imaging: files become arrays that know their units, spacing and patient sides; geometries make model input of them.

The way of a volume: `read_volume` (DICOM series, NIfTI, npy, NRRD/MHA) gives a `Volume` in Hounsfield units; a
`Geometry`, looked up by `geometry(name, **overrides)`, turns it into the tensor of one model. `read_image` does the
first half for 2D images. This room knows no records, no tokens and no model.
"""

from medmvl.imaging import geometries as _geometries  # noqa: F401 - fills the registry
from medmvl.imaging.dicom_scan import list_series
from medmvl.imaging.geometry import Geometry, Prepared, geometry, geometry_names
from medmvl.imaging.image import Image
from medmvl.imaging.read import read_image, read_volume
from medmvl.imaging.volume import Volume
from medmvl.imaging.windows import WINDOWS, Window

__all__ = [
    "WINDOWS",
    "Geometry",
    "Image",
    "Prepared",
    "Volume",
    "Window",
    "geometry",
    "geometry_names",
    "list_series",
    "read_image",
    "read_volume",
]
