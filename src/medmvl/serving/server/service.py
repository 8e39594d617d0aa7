"""The parts of a running server."""

from __future__ import annotations

from dataclasses import dataclass

from medmvl.inference import Predictor
from medmvl.inference.decoding import Decoder, Row, RowOptions
from medmvl.inference.decoding.prefixes import Prefixes
from medmvl.serving.server.asking import Asking, Facts
from medmvl.serving.server.audit import Audit
from medmvl.serving.server.engine import Engine
from medmvl.serving.server.guard import Guard
from medmvl.serving.server.metrics import Metrics
from medmvl.serving.server.readers import ReaderPool
from medmvl.serving.server.remote import RemoteScheduler
from medmvl.serving.server.scheduler import Scheduler
from medmvl.serving.server.settings import Limits, ServerSettings
from medmvl.serving.server.studies import StudyStore


@dataclass
class Service:
    """Everything that requests share.

    Attributes:
        draining: whether no new work is wanted.
    """

    settings: ServerSettings
    limits: Limits
    facts: Facts
    guard: Guard
    asking: Asking
    scheduler: Scheduler | RemoteScheduler
    studies: StudyStore
    readers: ReaderPool
    metrics: Metrics
    audit: Audit
    draining: bool = False

    @classmethod
    def start(cls, predictor: Predictor, settings: ServerSettings, limits: Limits) -> Service:
        """Start readers and decoder for a model.

        Raises:
            MissingExtraError: if a package of the extra is not installed.
            CheckpointError: if the model's generation config has rules that are not followed, or the backend runs another model.
            RecipeError: if no backend answers, or answers shall be withheld below a stored threshold and there is none.
        """
        predictor.calibration.resolve(settings.abstain_below)
        metrics = Metrics(settings.name)
        facts = Facts.of(predictor)
        scheduler, context = _scheduler(predictor, settings, limits)
        audit = Audit(settings.audit, settings.audit_days)
        readers = ReaderPool(predictor.processor, limits, settings.readers)
        studies = StudyStore(readers.prepare, limits)
        return cls(
            settings=settings,
            limits=limits,
            facts=facts,
            guard=Guard(settings.keys, limits),
            asking=Asking(predictor, settings, limits, studies, context),
            scheduler=scheduler,
            studies=studies,
            readers=readers,
            metrics=metrics,
            audit=audit,
        )

    def close(self) -> None:
        """End decoder and readers."""
        self.scheduler.close()
        self.readers.close()
        self.audit.close()


def _scheduler(
    predictor: Predictor, settings: ServerSettings, limits: Limits
) -> tuple[Scheduler | RemoteScheduler, int | None]:
    """Return what answers, and the longest prompt and answer together that it takes, if it has a limit of its own."""
    if settings.backend is None:
        return Scheduler(predictor.decoder(), limits.batch), None
    engine = Engine(settings.backend, settings.backend_key)
    return RemoteScheduler(predictor, engine, limits.batch), engine.context


def warm_up(predictor: Predictor) -> None:
    """Decode a token, so that the first request does not wait for what libraries set up lazily."""
    decoder = Decoder(predictor.model, predictor.processor, predictor.visual_cache, Prefixes(0))
    ids = predictor.processor.tokenizer(".", return_tensors="pt")["input_ids"][0]
    decoder.add([Row({"input_ids": ids}, RowOptions(max_new_tokens=2))])
    decoder.step()
