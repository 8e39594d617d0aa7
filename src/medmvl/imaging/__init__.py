"""Reading of medical images and volumes, and their preparation for models.

`read_volume` (DICOM series, NIfTI, npy, NRRD/MHA) returns a `Volume` in Hounsfield units. A `Geometry`, found by
`geometry(name, **overrides)`, windows, crops and resamples it to a model's input tensor. `read_image` reads 2D images.
This package does not depend on records, tokens or models. Names are imported at first use.
"""

from typing import TYPE_CHECKING

from medmvl.lazy import lazy_names

if TYPE_CHECKING:
    from medmvl.imaging.dicom.scan import list_series
    from medmvl.imaging.image import Image
    from medmvl.imaging.preprocessing.geometries import geometry, geometry_names
    from medmvl.imaging.preprocessing.geometry import Geometry, Prepared
    from medmvl.imaging.preprocessing.windows import WINDOWS, Window
    from medmvl.imaging.read import read_image, read_volume
    from medmvl.imaging.volume import Volume

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "WINDOWS": "medmvl.imaging.preprocessing.windows",
        "Geometry": "medmvl.imaging.preprocessing.geometry",
        "Image": "medmvl.imaging.image",
        "Prepared": "medmvl.imaging.preprocessing.geometry",
        "Volume": "medmvl.imaging.volume",
        "Window": "medmvl.imaging.preprocessing.windows",
        "geometry": "medmvl.imaging.preprocessing.geometries",
        "geometry_names": "medmvl.imaging.preprocessing.geometries",
        "list_series": "medmvl.imaging.dicom.scan",
        "read_image": "medmvl.imaging.read",
        "read_volume": "medmvl.imaging.read",
    },
)

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
