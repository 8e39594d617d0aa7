"""Metrics for Prometheus, under vLLM's names, so that its dashboards work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medmvl.errors import require
from medmvl.inference.decoding import Decoder, Row
from medmvl.serving.server.remote import RemoteScheduler
from medmvl.serving.server.scheduler import Scheduler, Times
from medmvl.serving.server.studies import StudyStore

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters, gauges and histograms of one server.

    Args:
        name: of the model, a label of every metric.
    """

    def __init__(self, name: str) -> None:
        self._client = require("prometheus_client", "serve")
        self._registry = self._client.CollectorRegistry()
        self._name = name
        make = self._make
        self._running = make("Gauge", "num_requests_running", "Requests that are decoded.")
        self._waiting = make("Gauge", "num_requests_waiting", "Requests that wait for their prefill.")
        self.first_token = make("Histogram", "time_to_first_token_seconds", "From arrival to the first token.")
        self.between_tokens = make("Histogram", "inter_token_latency_seconds", "Between tokens, mean of a request.")
        self.whole = make("Histogram", "e2e_request_latency_seconds", "From arrival to the last token.")
        self.queued = make("Histogram", "request_queue_time_seconds", "From submission to the prefill.")
        self.prompt_tokens = make("Counter", "prompt_tokens", "Tokens of prompts, visual ones included.")
        self.generation_tokens = make("Counter", "generation_tokens", "Generated tokens.")
        self._success = make("Counter", "request_success", "Answered requests.", "finished_reason")
        self._failed = make("Counter", "request_failure", "Requests that were not answered.", "status")
        self._counts = {
            "prefix_cache_queries": make("Counter", "prefix_cache_queries", "Prompt tokens looked up."),
            "prefix_cache_hits": make("Counter", "prefix_cache_hits", "Prompt tokens not run again."),
            "mm_cache_queries": make("Counter", "mm_cache_queries", "Images and volumes looked up."),
            "mm_cache_hits": make("Counter", "mm_cache_hits", "Images and volumes not read again."),
        }
        self._before = dict.fromkeys(self._counts, 0)

    def observe(self, rows: Sequence[Row], arrived: float, times: Times) -> None:
        """Count an answered request.

        Args:
            rows: its answers.
            arrived: `time.monotonic()` of its arrival.
            times: when it was submitted, prefilled, and had its first and last token.
        """
        self.first_token.observe(times.first - arrived)
        self.whole.observe(times.last - arrived)
        self.queued.observe(times.started - times.submitted)
        longest = max(len(row.token_ids) for row in rows)
        if longest > 1:
            self.between_tokens.observe((times.last - times.first) / (longest - 1))
        self.prompt_tokens.inc(len(rows[0].encoded["input_ids"]))
        for row in rows:
            self.generation_tokens.inc(len(row.token_ids))
            self._success.labels(model_name=self._name, finished_reason=row.finish).inc()

    def failed(self, status: int) -> None:
        """Count a request that was not answered, by its HTTP status."""
        self._failed.labels(model_name=self._name, status=str(status)).inc()

    def text(self, scheduler: Scheduler | RemoteScheduler, studies: StudyStore) -> bytes:
        """Return all metrics in Prometheus' text format."""
        self._running.set(scheduler.running)
        self._waiting.set(scheduler.waiting)
        now = _counted(scheduler.decoder, studies)
        for name, value in now.items():
            self._counts[name].inc(value - self._before[name])
        self._before = now
        return bytes(self._client.generate_latest(self._registry))

    def _make(self, kind: str, name: str, text: str, *labels: str) -> Any:
        extra = {"buckets": _SECONDS} if kind == "Histogram" else {}
        made = getattr(self._client, kind)(
            f"vllm:{name}", text, ["model_name", *labels], registry=self._registry, **extra
        )
        return made if labels else made.labels(model_name=self._name)


def _counted(decoder: Decoder, studies: StudyStore) -> dict[str, int]:
    prefixes = decoder.prefixes
    return {
        "prefix_cache_queries": prefixes.queries,
        "prefix_cache_hits": prefixes.hits,
        "mm_cache_queries": studies.queries,
        "mm_cache_hits": studies.hits,
    }
