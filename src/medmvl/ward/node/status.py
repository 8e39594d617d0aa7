"""Status of a node, read from its state file while it runs or after it ended."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from medmvl.errors import WardError, counted
from medmvl.ward.network_settings import NodeSettings
from medmvl.ward.node.spool import Spool
from medmvl.ward.node.state import NodeState

#: seconds after the last sign of life from which a node counts as not running
_SILENT = 15
_LISTED = 20


def node_status(settings: NodeSettings) -> dict[str, Any]:
    """Return the status as JSON values, without patient data; studies are named by the key of their folder.

    Raises:
        WardError: if no node has used the spool.
    """
    state = open_state(settings)
    try:
        studies, deliveries, counters = state.studies(), state.deliveries(), state.counters()
        destinations = state.destinations()
    finally:
        state.close()
    silent = time.time() - counters.pop("heartbeat", 0.0)
    troubles = [
        {"study": study.key, "state": study.state, "attempts": study.attempts, "reason": study.reason}
        for study in studies
        if study.reason
    ]
    stuck = [
        {"study": row.study, "destination": row.destination, "state": row.state, "reason": row.reason}
        for row in deliveries
        if row.state == "failed" or (row.state == "waiting" and row.reason)
    ]
    free = Spool(Path(settings.spool)).free_bytes() // 2**20
    return {
        "running": silent < _SILENT,
        "free_megabytes": free,
        "disk_full": free < settings.min_free_megabytes,
        "studies": dict(Counter(study.state for study in studies)),
        "outcomes": dict(Counter(study.outcome for study in studies if study.outcome)),
        "deliveries": dict(Counter(f"{row.destination}: {row.state}" for row in deliveries)),
        "destinations": {name: f"{counted(n, 'failure')}: {why}" for name, (n, _, why) in destinations.items() if n},
        "troubled_studies": troubles,
        "troubled_deliveries": stuck,
        "counters": counters,
    }


def open_state(settings: NodeSettings, *, readonly: bool = True) -> NodeState:
    """Open the state file of a node.

    Raises:
        WardError: if there is none.
    """
    path = Path(settings.spool) / "state.sqlite"
    if not path.is_file():
        raise WardError(f"No node has used the spool {settings.spool} yet. Start one with `medmvl node`.")
    return NodeState(path, readonly=readonly)


def describe_status(status: dict[str, Any]) -> str:
    """Return a status as lines for people."""
    lines = [
        f"node: {'running' if status['running'] else 'NOT RUNNING'}, {status['free_megabytes']} MB free"
        + (", DISK FULL: objects are refused" if status["disk_full"] else "")
    ]
    for key in ("studies", "outcomes", "deliveries"):
        counts = ", ".join(f"{count} {name}" for name, count in sorted(status[key].items()))
        lines.append(f"{key}: {counts or 'none'}")
    lines += [f"destination {name}: {why}" for name, why in status["destinations"].items()]
    for key in ("troubled_studies", "troubled_deliveries"):
        for row in status[key][:_LISTED]:
            where = f" to {row['destination']}" if "destination" in row else ""
            lines.append(f"{row['state']}: study {row['study']}{where}: {row['reason']}")
        if len(status[key]) > _LISTED:
            lines.append(f"... and {len(status[key]) - _LISTED} more (--json lists all)")
    return "\n".join(lines)
