"""Reading of uploads for the page, in a reader process: files for the viewer and tensors for the models."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import torch
from torch import Tensor

from medmvl.data.read_options import ReadOptions
from medmvl.data.read_spelling import remedies
from medmvl.errors import DataError, MedMVLError, naming
from medmvl.files import write_json
from medmvl.imaging import Image, Volume, read_image, read_volume
from medmvl.imaging.dicom.scan import Series, scan
from medmvl.imaging.preprocessing.rendering import display_windows
from medmvl.imaging.read import sniff
from medmvl.processing import ImageProcessor, VolumeProcessor
from medmvl.serving.page.upload_names import SERIES_FOLDER, upload_of
from medmvl.serving.server.unpack import extract, suffix_of

#: Files of an open study, in its folder. The models are numbered from 0.
VIEW_VOLUME, VIEW_IMAGE, FACTS = "view.nii", "view.png", "facts.json"
#: Bytes of a pixel or voxel at most, while a file is decoded.
_VALUE_BYTES = 8


class StudyReader:
    """Reads what a visitor sent.

    Args:
        models: for each model the settings of its processors, "image" and "volume"; None without a tower.
        pixels, voxels: limits of the size.
    """

    def __init__(self, models: Sequence[Mapping[str, Any]], pixels: int, voxels: int) -> None:
        self._images = [ImageProcessor(model["image"]) if model["image"] else None for model in models]
        self._volumes = [VolumeProcessor.from_dict(model["volume"]) if model["volume"] else None for model in models]
        self._pixels, self._voxels = pixels, voxels

    def read(self, sources: Sequence[str], out: str, read: Mapping[str, Any]) -> dict[str, Any]:
        """Return the facts of each study that was read, or the series among which the visitor must choose.

        Args:
            sources: the uploaded files.
            out: an empty folder; gets one folder for each study.
            read: options for reading.

        Raises:
            MedMVLError: if the files cannot be read as images or volumes that all models take.
        """
        options = ReadOptions.parse(read)
        dicom, others = self._sorted([Path(source) for source in sources], Path(out))
        if dicom and others:
            raise DataError("Send either DICOM files or files of other formats, not both at once.")
        if dicom:
            found = self._read_dicom(dicom, Path(out), options)
            if isinstance(found, dict):
                return found
        else:
            found = [self._read_other(file, options) for file in others]
        self._check_alike(found)
        return {"studies": [self._write(item, Path(out) / f"study-{number}") for number, item in enumerate(found)]}

    def _sorted(self, sources: Sequence[Path], out: Path) -> tuple[list[Path], list[Path]]:
        """Return DICOM files and other files; archives are unpacked, and every file gets the suffix of its content."""
        files: list[Path] = []
        for source in sources:
            if zipfile.is_zipfile(source) and not _is_npz(source):
                with naming(source):
                    files += extract(source, out / f"archive-{source.name}", _VALUE_BYTES * self._voxels)
            else:
                files.append(source)
        dicom: list[Path] = []
        others: list[Path] = []
        for file in files:
            with file.open("rb") as handle:
                head = handle.read(512)
            if not head:
                raise DataError(f"{file} is empty.")
            suffix = ".npz" if _is_npz(file) else suffix_of(head)
            if suffix and file.suffix != suffix:
                file = file.rename(file.with_suffix(suffix))
            (dicom if sniff(file) == "dicom" else others).append(file)
        if not files:
            raise DataError("Nothing was sent. Drop an image, a NIfTI file, or the files of a DICOM series.")
        return dicom, others

    @property
    def _has_images(self) -> bool:
        return all(processor is not None for processor in self._images)

    @property
    def _has_volumes(self) -> bool:
        return all(processor is not None for processor in self._volumes)

    def _read_dicom(
        self, files: Sequence[Path], out: Path, options: ReadOptions
    ) -> list[Image | Volume] | dict[str, Any]:
        if len(files) == 1 and (self._has_images or not self._has_volumes):
            return [self._image(files[0], options)]
        folder = out / SERIES_FOLDER
        folder.mkdir()
        for number, file in enumerate(files):
            file.rename(folder / f"{upload_of(file)}-{number:05d}.dcm")
        found = scan(folder)
        if not any(len(series.slices) > 1 for series in found.series) and self._has_images:
            return [self._image(file, options) for file in sorted(folder.iterdir())]
        candidates = [series for series in found.series if len(series.slices) > 1] or found.series
        if options.series is None and len({series.uid for series in candidates}) > 1:
            return {"series": [_choice(series, candidates) for series in candidates]}
        return [self._volume(folder, options)]

    def _read_other(self, file: Path, options: ReadOptions) -> Image | Volume:
        kind = sniff(file)
        if kind in ("nifti", "itk"):
            return self._volume(file, options)
        if kind == "picture" or (kind == "numpy" and file.suffix == ".npy" and not self._has_volumes):
            return self._image(file, options)
        if kind == "numpy" and file.suffix == ".npy" and options.units is None:
            return self._volume(file, ReadOptions(units="HU").over(options))
        return self._volume(file, options)

    def _image(self, file: Path, options: ReadOptions) -> Image:
        with naming(file):
            if not self._has_images:
                raise DataError("This model looks at volumes only. Drop a CT: NIfTI, NRRD, or a DICOM series.")
            image = read_image(file, **options.for_image(), max_bytes=_VALUE_BYTES * self._pixels)
            if (count := image.shape[0] * image.shape[1]) > self._pixels:
                raise DataError(f"The image has {count} pixels; at most {self._pixels} are read.")
        return image

    def _volume(self, path: Path, options: ReadOptions) -> Volume:
        with naming(path):
            if not self._has_volumes:
                raise DataError("This model looks at images only. Drop a PNG, JPEG or TIFF file, or one DICOM image.")
            volume = read_volume(path, **options.for_volume(), max_bytes=_VALUE_BYTES * self._voxels)
            if volume.array.size > self._voxels:
                raise DataError(f"The volume has {volume.array.size} voxels; at most {self._voxels} are read.")
        return volume

    def _check_alike(self, found: Sequence[Image | Volume]) -> None:
        if len({type(item) for item in found}) > 1:
            raise DataError("Send either images or volumes, not both at once.")

    def _write(self, item: Image | Volume, folder: Path) -> dict[str, Any]:
        folder.mkdir()
        facts = self._write_volume(item, folder) if isinstance(item, Volume) else self._write_image(item, folder)
        facts |= {"history": list(item.history), "warnings": list(item.warnings), "source": item.source}
        facts["folder"] = str(folder)
        write_json(folder / FACTS, facts)
        return facts

    def _write_volume(self, volume: Volume, folder: Path) -> dict[str, Any]:
        right = volume.to_orientation("RAS")
        save_ras(right.array, right.affine, folder / VIEW_VOLUME)
        seen = []
        for number, processor in enumerate(self._volumes):
            assert processor is not None
            prepared = processor.prepare(volume)
            np.save(folder / f"tensor-{number}.npy", processor(prepared).numpy())
            save_prepared(prepared, processor.geometry.affine(volume), folder / f"model-{number}.nii")
            seen.append("x".join(map(str, prepared.shape[1:])))
        window = next(iter(display_windows(volume).values()))
        if volume.units == "HU":
            window = display_windows(volume)["mediastinum"]
        return {
            "kind": "volume",
            "shape": list(right.shape),
            "spacing": list(right.spacing) if right.spacing else None,
            "units": volume.units,
            "sides_known": volume.sides_known,
            "window": list(window.bounds),
            "range": [float(volume.array.min()), float(volume.array.max())],
            "model_sizes": seen,
        }

    def _write_image(self, image: Image, folder: Path) -> dict[str, Any]:
        PIL.Image.fromarray(image.to_uint8()).save(folder / VIEW_IMAGE, compress_level=1)
        seen = []
        for number, processor in enumerate(self._images):
            assert processor is not None
            tensor = processor(image)
            np.save(folder / f"tensor-{number}.npy", tensor.numpy())
            low, high = processor.value_range()
            gray = ((tensor - low) / (high - low) * 255).clamp(0, 255).round().to(torch.uint8)
            PIL.Image.fromarray(gray.permute(1, 2, 0).numpy()).save(folder / f"model-{number}.png")
            seen.append("x".join(map(str, tensor.shape[1:])))
        return {
            "kind": "image",
            "shape": [image.shape[1], image.shape[0]],
            "spacing": [image.spacing[1], image.spacing[0]] if image.spacing else None,
            "units": image.units,
            "sides_known": image.sides is not None,
            "sides": list(image.sides) if image.sides else None,
            "color": image.array.ndim == 3,
            "model_sizes": seen,
        }


def save_ras(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write an uncompressed NIfTI file that the viewer reads without reordering.

    Args:
        array: (x, y, z), growing towards the patient's right, front and head.
        affine: (4, 4), index -> RAS+ mm.
    """
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif array.dtype.kind in "iu" and array.dtype not in (np.uint8, np.int16):
        fits = array.min() >= -32768 and array.max() <= 32767
        array = array.astype(np.int16 if fits else np.float32)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def save_prepared(prepared: Tensor, affine: np.ndarray, path: Path) -> None:
    """Write the first channel of a prepared volume (C, D, H, W) with its affine (4, 4) as NIfTI in RAS order."""
    values = prepared[0].numpy()
    volume = Volume(array=values, units="arbitrary", affine=affine).to_orientation("RAS")
    save_ras(np.ascontiguousarray(volume.array), volume.affine, path)


def answer_request(head: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a request of the page: studies, series to choose from, or an error with its remedies."""
    reader = StudyReader(head["models"], head["pixels"], head["voxels"])
    try:
        return reader.read(head["sources"], head["out"], head["read"])
    except MedMVLError as error:
        return {"refused": str(error), "remedies": remedies(str(error))}


def _is_npz(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _choice(series: Series, candidates: Sequence[Series]) -> dict[str, str]:
    """Return a series by the shortest end of its UID that names it alone, and its description."""
    ends = range(6, len(series.uid) + 1)
    end = next((n for n in ends if sum(other.uid.endswith(series.uid[-n:]) for other in candidates) == 1), None)
    return {"series": series.uid[-end:] if end else series.uid, "description": series.describe()}
