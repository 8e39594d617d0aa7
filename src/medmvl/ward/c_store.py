"""C-STORE: objects to a DICOM destination, every status checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE

from medmvl.ward.network_settings import DicomTarget
from medmvl.ward.outcome import Delivery
from medmvl.ward.tls import client_context

#: seconds to wait for a connection, an answer to the association, and an answer to each object
_CONNECT, _ASSOCIATE, _ANSWER = 10, 30, 120
_DUPLICATE = 0x0111
#: A7xx is "out of resources" (PS3.4, table B.2-1); every other failure is a refusal of the object
_OUT_OF_RESOURCES = range(0xA700, 0xA800)


def c_store(target: DicomTarget, files: Sequence[Path]) -> list[Delivery]:
    """Send files and return the outcome of each, in order.

    They share one association; if an object breaks it, the rest go over a new one.
    """
    waiting = [dcmread(file) for file in files]
    outcomes: list[Delivery] = []
    while waiting:
        done = _send_all(target, waiting)
        outcomes += done
        waiting = waiting[len(done) :]
    return outcomes


def _send_all(target: DicomTarget, objects: Sequence[Dataset]) -> list[Delivery]:
    """Send objects over one association until it is lost; return the outcomes, at least one."""
    entity = AE(ae_title=target.calling_ae_title)
    entity.connection_timeout, entity.acse_timeout, entity.dimse_timeout = _CONNECT, _ASSOCIATE, _ANSWER
    for storage in dict.fromkeys(data.SOPClassUID for data in objects):
        entity.add_requested_context(storage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    tls: dict[str, Any] = {} if target.tls is None else {"tls_args": (client_context(target.tls), target.host)}
    association = entity.associate(target.host, target.port, ae_title=target.ae_title, **tls)
    if not association.is_established:
        refused = association.is_rejected
        why = "rejected the association; check both AE titles" if refused else "cannot be reached"
        return [Delivery("unreachable", f"{target.ae_title} {why}")] * len(objects)
    outcomes: list[Delivery] = []
    try:
        for data in objects:
            outcomes.append(_send(association, data))
            if outcomes[-1].state == "unreachable":  # a lost association may still count as established for a moment
                break
    finally:
        if association.is_established:
            association.release()
    return outcomes


def _send(association: Any, data: Dataset) -> Delivery:
    """Send one object over an open association."""
    try:
        status = association.send_c_store(data)
    except ValueError:  # pynetdicom found no accepted presentation context
        return Delivery("rejected", f"the destination does not accept {data.SOPClassUID.name}")
    except RuntimeError as error:
        return Delivery("unreachable", f"the association was lost: {type(error).__name__}")
    code = status.get("Status") if status else None
    if code is None:
        return Delivery("unreachable", "the destination gave no answer")
    if code == 0x0000:
        return Delivery("stored")
    if code == _DUPLICATE:
        return Delivery("stored", "the destination had it already")
    if 0xB000 <= code <= 0xBFFF:
        return Delivery("stored", f"stored with warning {code:04X}H")
    if code in _OUT_OF_RESOURCES:
        return Delivery("unreachable", f"the destination is out of resources, status {code:04X}H")
    return Delivery("rejected", f"C-STORE status {code:04X}H")
