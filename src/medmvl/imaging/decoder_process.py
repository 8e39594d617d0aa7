"""Program of the child process in which C++ libraries decode files: reads requests from stdin and answers on stdout.

It runs as a script, so that it imports numpy and pydicom with its decoders but not torch. A request is a JSON line, followed
by the encoded bytes of a frame; or it names a file for SimpleITK. The answer is a JSON line with shape and dtype,
followed by the decoded bytes; or a JSON line with the kind of the failure. If the request says so, bytes are not in the
pipes but at the beginning of the shared memory, whose file descriptor and size are the arguments of the program. Error texts of DICOM decoders are not passed on,
because they may quote attribute values.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import resource
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO

#: bytes of address space for the decoders, in addition to what the process has at its start
_SPARE = 2**29
#: copies of a decoded frame that the decoders and pydicom hold at a time, with some reserve
_COPIES = 16
#: options of pydicom's decoder; unused bits and signs are corrected by the caller, by one rule for all encodings
FIXED: dict[str, Any] = {
    "pixel_keyword": "PixelData",
    "number_of_frames": 1,
    "correct_unused_bits": False,
    "apply_j2k_sign_correction": False,
    "apply_jls_sign_correction": False,
}


def main() -> None:
    """Answer requests until stdin is closed."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # C libraries print to these
    os.dup2(null, 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    shared = mmap.mmap(int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 1 else None
    for name in ("requests", "tqdm"):  # pydicom would import them for downloads, which takes a third of the start
        sys.modules[name] = None  # type: ignore[assignment]
    import gdcm  # noqa: F401 - loads its libraries before the first request
    import numpy as np
    import PIL.Image  # noqa: F401
    from pydicom.pixels import get_decoder  # noqa: F401

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    base = _address_space()
    _send(answers, {"ready": True})
    requests = sys.stdin.buffer
    while line := requests.readline():
        request: dict[str, Any] = json.loads(line)
        body = shared[: request["bytes"]] if shared and request["shared"] else requests.read(request["bytes"])
        if "path" in request and "SimpleITK" not in sys.modules:
            _limit_memory(resource.RLIM_INFINITY)
            import SimpleITK  # noqa: F401 - counts to the base

            base = _address_space()
        if base is not None:
            _limit_memory(base + _SPARE + _COPIES * request["decoded"])
        try:
            head, array = _read_itk(request) if "path" in request else _decode(request, body)
        except Exception as error:  # the decoders raise any type
            reason = " ".join(str(error).split())[-200:] if "path" in request else ""
            _send(answers, {"error": type(error).__name__, "no_decoder": "plugins" in str(error), "reason": reason})
            continue
        if array is None:
            _send(answers, head)
            continue
        head |= {"shape": array.shape, "dtype": array.dtype.str, "shared": False}
        if shared and request["shared"] and array.nbytes <= len(shared):
            np.copyto(np.ndarray(array.shape, array.dtype, shared), array)
            _send(answers, {**head, "shared": True})
            continue
        _send(answers, head, np.ascontiguousarray(array).data.cast("B"))


def _decode(request: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], Any]:
    """Return the pixels of one DICOM frame."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    array, _ = get_decoder(request["syntax"]).as_array(encapsulate([frame]), **FIXED, **request["options"])
    return {}, array


def _read_itk(request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the header of a file that SimpleITK reads and, if asked for, its voxels (k, j, i)."""
    import SimpleITK as sitk  # noqa: N813 - its usual name

    reader = sitk.ImageFileReader()
    reader.SetFileName(request["path"])
    if request["voxels"]:
        return {}, sitk.GetArrayFromImage(reader.Execute())
    reader.ReadImageInformation()
    head = {
        "size": reader.GetSize(),
        "components": reader.GetNumberOfComponents(),
        "direction": reader.GetDirection(),
        "spacing": reader.GetSpacing(),
        "origin": reader.GetOrigin(),
    }
    return head, None


def _send(stream: BinaryIO, head: dict[str, Any], body: memoryview | None = None) -> None:
    stream.write(json.dumps(head).encode() + b"\n")
    sent = 0
    while body is not None and sent < len(body):
        sent += stream.write(body[sent:])


def _address_space() -> int | None:
    """Return the address space of this process in bytes, or None on systems without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def _limit_memory(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    main()
