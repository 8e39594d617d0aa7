"""Processing of complete studies, one after the other."""

from __future__ import annotations

import logging
import time

from medmvl.errors import MedMVLError, counted
from medmvl.ward.answering import Answerer
from medmvl.ward.network_settings import NodeSettings
from medmvl.ward.node.faults import describe_fault
from medmvl.ward.node.listener import Listener
from medmvl.ward.node.rows import StudyRow
from medmvl.ward.node.spool import Spool
from medmvl.ward.node.state import NodeState
from medmvl.ward.process import process_study
from medmvl.ward.protocol import Protocol

_LOG = logging.getLogger(__name__)


class Worker:
    """Processes studies that are complete, in the order of their first object.

    Args:
        answerer: the model.
    """

    def __init__(
        self,
        protocol: Protocol,
        settings: NodeSettings,
        spool: Spool,
        state: NodeState,
        listener: Listener,
        answerer: Answerer,
    ) -> None:
        self._protocol, self._settings, self._answerer = protocol, settings, answerer
        self._spool, self._state, self._listener = spool, state, listener

    def run_once(self) -> bool:
        """Process the next complete study; False if there is none."""
        now = time.time()
        study = next((study for study in self._state.studies("receiving") if self._is_due(study, now)), None)
        if study is None:
            return False
        if study.attempts >= self._settings.max_attempts or study.crashes >= self._settings.max_crashes:
            self._state.fail(study.key, study.reason, now)
            self._state.count("studies_failed")
            _LOG.error("study %s failed: %s", study.key, study.reason)
            return True
        self._state.start(study.key, now)
        try:
            self._process(study)
        except MedMVLError as error:
            self._put_off(study, str(error))
        except OSError as error:
            reason = f"the disk cannot be used: {error.strerror or type(error).__name__}"
            self._state.put_off(study.key, reason, time.time() + self._settings.max_retry_seconds, counts=False)
            _LOG.error("study %s waits: %s", study.key, reason)
        except Exception as error:  # a study must not end the node
            _LOG.error("study %s: unexpected %s", study.key, describe_fault(error))
            self._put_off(study, f"unexpected {type(error).__name__}")
        return True

    def _is_due(self, study: StudyRow, now: float) -> bool:
        quiet = now - study.last_arrival
        if quiet < self._settings.quiet_seconds or now < study.next_try:
            return False
        return quiet >= self._settings.patience_seconds or not self._listener.is_sending(study.key)

    def _process(self, study: StudyRow) -> None:
        begin = time.monotonic()
        result = process_study(
            self._spool.studies / study.key, self._protocol, self._answerer, is_known=self._state.is_known_result
        )
        files = self._spool.store_result(result) if result.objects else []
        targets = [destination.name for destination in self._protocol.destinations]
        reason = f"no series fits: {'; '.join(result.notes)}" if result.outcome == "no-series" else ""
        self._state.finish(
            study.key,
            result.outcome,
            time.time(),
            reason=reason,
            identity=result.identity,
            files=files,
            targets=targets,
        )
        self._state.count("studies_processed")
        self._state.count("processing_seconds", time.monotonic() - begin)
        _LOG.info("study %s: %s, %s", study.key, result.outcome, counted(len(files), "object"))

    def _put_off(self, study: StudyRow, reason: str) -> None:
        """Try a study that failed again later; the attempts are limited."""
        wait = backoff(self._settings, study.attempts)
        self._state.put_off(study.key, reason, time.time() + wait)
        _LOG.warning("study %s cannot be processed: %s", study.key, reason)


def backoff(settings: NodeSettings, failures: int) -> float:
    """Return the seconds to wait after `failures` earlier failures: twice as long each time, up to a limit."""
    return min(settings.retry_seconds * 2 ** min(failures, 20), settings.max_retry_seconds)
