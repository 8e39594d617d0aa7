"""Reading of medical images and volumes, and their preparation for models.

`read_volume` (DICOM series, NIfTI, npy, NRRD/MHA) returns a `Volume` in Hounsfield units. A `Geometry`, found by
`geometry(name, **overrides)`, windows, crops and resamples it to a model's input tensor. `read_image` reads 2D images.
This package does not depend on records, tokens or models.
"""

from medmvl.imaging.dicom.scan import list_series
from medmvl.imaging.image import Image
from medmvl.imaging.preprocessing import geometries as _geometries  # noqa: F401 - fills the registry
from medmvl.imaging.preprocessing.geometry import Geometry, Prepared, geometry, geometry_names
from medmvl.imaging.preprocessing.windows import WINDOWS, Window
from medmvl.imaging.read import read_image, read_volume
from medmvl.imaging.volume import Volume

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
