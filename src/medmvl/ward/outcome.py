"""The outcome of sending one object to a destination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["stored", "rejected", "unreachable"]


@dataclass(frozen=True)
class Delivery:
    """Outcome of sending one object.

    Attributes:
        state: stored: the destination has it. rejected: the destination will not take it as it is. unreachable: the
            destination could not be asked, or is out of resources; a later attempt may succeed.
        reason: empty if stored without a remark; no patient data.
    """

    state: State
    reason: str = ""
