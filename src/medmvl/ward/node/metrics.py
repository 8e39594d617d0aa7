"""Metrics of a node in Prometheus' text format, on a loopback port."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from medmvl.errors import WardError
from medmvl.ward.node.spool import Spool
from medmvl.ward.node.state import NodeState

#: counters that exist from the start, with their help text
COUNTERS = {
    "objects_received": "Objects stored and confirmed.",
    "objects_received_again": "Objects that were in the spool already, byte for byte.",
    "objects_refused_broken": "Objects refused because they cannot be read.",
    "objects_refused_disk": "Objects refused for lack of disk space.",
    "objects_refused_large": "Objects dropped because they are above the limit of size.",
    "own_results_ignored": "Results of MedM-VL that were sent to the node.",
    "associations_rejected": "Associations rejected, such as for a wrong AE title.",
    "associations_aborted": "Associations aborted.",
    "studies_processed": "Studies processed, repeats included.",
    "studies_failed": "Studies given up.",
    "studies_interrupted": "Times that the node ended while it processed a study.",
    "processing_seconds": "Seconds spent on processing.",
    "objects_sent": "Result objects confirmed by a destination.",
    "delivery_attempts_failed": "Attempts at which a destination could not be reached.",
}


def render_metrics(spool: Spool, state: NodeState) -> str:
    """Return all metrics; they hold no patient data."""
    counters = state.counters()
    lines: list[str] = []
    for name, text in COUNTERS.items():
        metric = f"medmvl_node_{name}_total"
        lines += [f"# HELP {metric} {text}", f"# TYPE {metric} counter", f"{metric} {counters.get(name, 0):g}"]
    studies = Counter(study.state for study in state.studies())
    lines += _gauge("studies", "Studies by state.", {f'state="{name}"': count for name, count in studies.items()})
    deliveries = Counter((row.destination, row.state) for row in state.deliveries())
    lines += _gauge(
        "deliveries",
        "Result objects by destination and state.",
        {f'destination="{name}",state="{kind}"': count for (name, kind), count in deliveries.items()},
    )
    failing = {f'destination="{name}"': failures for name, (failures, _, _) in state.destinations().items()}
    lines += _gauge("destination_failures", "Failures in a row.", failing)
    waiting = [row.created for row in state.deliveries(state="waiting")]
    oldest = time.time() - min(waiting) if waiting else 0.0
    lines += _gauge("oldest_waiting_seconds", "Age of the oldest result that is not delivered.", {"": oldest})
    lines += _gauge("free_bytes", "Free space of the spool.", {"": spool.free_bytes()})
    return "\n".join(lines) + "\n"


def _gauge(name: str, text: str, values: Mapping[str, float]) -> list[str]:
    metric = f"medmvl_node_{name}"
    rows = [f"{metric}{{{labels}}} {value:g}" if labels else f"{metric} {value:g}" for labels, value in values.items()]
    return [f"# HELP {metric} {text}", f"# TYPE {metric} gauge", *rows]


@contextmanager
def serve_metrics(port: int, spool: Spool, state: NodeState) -> Iterator[None]:
    """Serve `/metrics` on 127.0.0.1 until the block ends.

    Raises:
        WardError: if the port cannot be opened.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = render_metrics(spool, state).encode() if self.path == "/metrics" else b"see /metrics\n"
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Write no line per request."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise WardError(f"The metrics port {port} cannot be opened: {error.strerror}.") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
