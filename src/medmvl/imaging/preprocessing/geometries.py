"""The named geometries, with the source of their numbers. Importing this module fills the registry.

`geometry` and `geometry_names`, which look names up, are taken from here.
"""

from __future__ import annotations

from medmvl.imaging.preprocessing.geometry import GEOMETRIES, Geometry, geometry, geometry_names

__all__ = ["geometry", "geometry_names"]

MEDM_VL = "MedM-VL (commit 225fc0f), 3D processors: clip to ±1000 HU, 0..255, crop to the foreground, trilinear"

_NAMED = (
    Geometry(
        name="medm-vl-ct",
        source=f"{MEDM_VL} to 32xSxS, truncated to uint8; SigLIP then sees u/255*2-1 in three equal channels",
        crop="foreground",
    ),
    Geometry(
        name="medm-vl-ct-medmclip",
        source=f"{MEDM_VL} to 32x256x256 after the normalization of MedM-CLIP, whose zero decides the crop",
        normalize=(55.6982188356434, 66.1943479570918),
        crop="foreground",
        dtype="float32",
    ),
    Geometry(
        name="medm-vl-ct-m3dclip",
        source=f"{MEDM_VL} to 32x256x256 after stretching the windowed values to 0..1 (M3D-CLIP)",
        scale=(0.0, 1.0),
        minmax=True,
        crop="foreground",
        dtype="float32",
    ),
    Geometry(
        name="m3d",
        source="M3D (Bai et al. 2024, arXiv:2404.00578), data preparation: min-max, crop above 0, trilinear",
        units="any",
        windows=(),
        minmax=True,
        crop="foreground",
        dtype="float32",
    ),
    Geometry(
        name="ct-clip",
        # No reorientation there: D is z, H is the file's x and W its y. In CT-RATE's files x grows to the patient's
        # left and y to the back, as DICOM's do, hence SLP.
        source="CT-CLIP (Hamamci et al. 2024, arXiv:2403.17834), scripts/data_inference_nii.py: clip to ±1000 HU, "
        "trilinear to 1.5x0.75x0.75 mm, /1000, center crop or pad with -1",
        orientation="SLP",
        scale=(-1.0, 1.0),
        spacing=(1.5, 0.75, 0.75),
        size=(240, 480, 480),
        fit="crop_pad",
        pad_value=-1.0,
        dtype="float32",
    ),
    Geometry(
        name="merlin",
        # Merlin's tensor is (x, y, z) in RAS; with our axes (D, H, W) = (z, x, y) that is SRA, the order its network
        # brings the axes to itself.
        source="Merlin (Blankemeier et al. 2024, arXiv:2406.06512), MONAI chain: RAS, linear to 1.5x1.5x3 mm, "
        "±1000 HU to 0..1, pad with 0 and center crop to 224x224x160",
        orientation="SRA",
        scale=(0.0, 1.0),
        window_after_resampling=True,
        spacing=(3.0, 1.5, 1.5),
        grid="centers",
        size=(160, 224, 224),
        fit="crop_pad",
        dtype="float32",
    ),
    Geometry(
        name="chest-multiwindow",
        source="MedM-VL: lung, mediastinum and bone windows as channels (Radiopaedia's chest settings), cropped "
        "to the body",
        windows=((-1350.0, 150.0), (-125.0, 225.0), (-500.0, 1300.0)),
        crop="foreground",
        foreground_above=-500.0,
    ),
)

for _geometry in _NAMED:
    GEOMETRIES.add(_geometry.name, _geometry)
