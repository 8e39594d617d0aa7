"""The main job, end to end, on a laptop: draw, convert, train in stages, predict, score, report.

Everything a real project does is done here by the same code, only smaller: the phantoms are written in the layouts of SLAKE and
CT-RATE and go through their converters, two encoders are pretrained by captioning, the recipe puts them before an LLM that was
pretrained on texts and trains the three together, and the held-out patients are scored together with two controls that do not see
the right picture.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from medmvl.cards import read_statements, write_card
from medmvl.errors import RecipeError
from medmvl.evaluation import EvaluationOptions
from medmvl.evaluation.evaluate_model import PREDICTIONS, Answered, answer_benchmark, score_answered
from medmvl.evaluation.headline import weakest
from medmvl.evaluation.table import markdown_table
from medmvl.experiments.quickstart.data import convert_all, prepare_volumes, write_warmup
from medmvl.experiments.quickstart.drawing import draw
from medmvl.experiments.quickstart.place import Quickstart, line_count
from medmvl.experiments.quickstart.processes import in_parallel
from medmvl.experiments.quickstart.training import PRETRAINED_LLM, encoder_recipe, pretrain_encoders, recipe
from medmvl.files import OutputLock, PathLike, read_json, write_json
from medmvl.inference import GenerationOptions, Predictor
from medmvl.phantoms import VERSION
from medmvl.progress_bar import progress_bar
from medmvl.training.acceleration.muon import require_muon
from medmvl.training.engine.checkpoints import link_or_copy
from medmvl.training.run import train

BENCHMARKS = ("phantom-2d", "phantom-ct")
CONTROLS = ("blank", "shuffled")
#: What the model card states.
STATEMENTS = Path(str(resources.files(__package__) / "statements.yaml"))


def quickstart(
    out: PathLike = "runs/quickstart", seed: int = 0, *, scale: float = 1.0, console: Console | None = None
) -> dict[str, Any]:
    """Run the quickstart and return the content of results.json.

    Resumes an unfinished quickstart of the same seed and scale in `out`.

    Args:
        out: the run folder: raw/, data/, the encoders, the stages, model/, log.jsonl, results.json, report.html.
        seed: of the phantoms, the weights and the order of the data.
        scale: share of the patients and epochs; 0.05 is a smoke test.

    Call it below `if __name__ == "__main__":` in a script: it starts processes.

    Raises:
        RecipeError: if `scale` is not in (0, 1], or `out` holds a quickstart with other settings.
        BusyError: naming the process, if another quickstart runs in `out`.
        MissingExtraError: if torch is older than 2.9.
    """
    if not 0 < scale <= 1:
        raise RecipeError(f"The scale must be above 0 and at most 1, got {scale}.")
    require_muon()  # now, rather than after the drawing
    console = console or Console()
    place = Quickstart(Path(out))
    with OutputLock(place.results):
        return _run(place, seed, scale, console)


def _run(place: Quickstart, seed: int, scale: float, console: Console) -> dict[str, Any]:
    resumed = note_settings(place, seed, scale)
    begun = time.monotonic()
    with _step(console, "1/6  Draw synthetic patients and write them as SLAKE and CT-RATE"):
        draw(place, seed, scale)
    with _step(console, "2/6  Convert both data sets to records, and prepare the scans"):
        convert_all(place)
        write_warmup(place, seed, scale)
        prepare_volumes(place, encoder_recipe(place, "volume", seed, scale))
        link_or_copy(PRETRAINED_LLM, place.llm)
    with _step(console, "3/6  Pretrain the encoders on captions, in parallel"):
        pretrain_encoders(place, seed, scale)
    with _step(console, "4/6  Train connectors, then the whole model"):
        train(recipe(place, seed, scale), place.root, resume=True)
    with _step(
        console,
        "5/6  Answer questions about held-out patients, with their picture, a blank one and another patient's (shuffled)",
    ):
        results = evaluate(place)
    minutes = (time.monotonic() - begun) / 60
    with _step(console, "6/6  Report"):
        if not place.results.is_file():
            # A finished quickstart's card is its owner's, who may have put other statements into it.
            write_card(place.model, read_statements(STATEMENTS), results, markdown_table(results))
            facts = {"seed": seed, "scale": scale, "minutes": round(minutes, 2), "resumed": resumed}
            write_json(place.results, facts)
    _say_what_next(place, results, minutes, console)
    return results


def note_settings(place: Quickstart, seed: int, scale: float) -> bool:
    """Write down what the folder's quickstart is made with; return whether it was begun before.

    Raises:
        RecipeError: if the folder holds a quickstart with other settings, or of another version of the toolkit.
    """
    wanted = {"seed": seed, "scale": scale, "version": VERSION}
    noted = place.root / "settings.json"
    found = read_json(noted) if noted.is_file() else None
    if found is None and not place.raw.exists():
        write_json(noted, wanted)
        return False
    if found != wanted:
        had = ", ".join(f"{key} {value}" for key, value in found.items()) if found else "an earlier version"
        raise RecipeError(
            f"{place.root} holds a quickstart with {had}; this one has seed {seed}, scale {scale}, version {VERSION}. Use the same "
            "settings, choose another --out, or remove the folder."
        )
    return True


def evaluate(place: Quickstart) -> dict[str, Any]:
    """Answer both benchmarks with and without the right picture, in two processes, and score them into one folder."""
    # Reports take longest; the process that ends first takes the next round.
    rounds = [(_answer, place, name, control) for name in reversed(BENCHMARKS) for control in (None, *CONTROLS)]
    with progress_bar("answers", _questions(place)) as bar:
        answered = in_parallel(rounds, lambda: bar.update(_answers(place)))
    title = "MedM-VL quickstart: synthetic phantoms, no clinical meaning"
    options = EvaluationOptions(log=place.root / "log.jsonl", title=title)
    benchmarks = {one.benchmark: one for one in answered}
    results = [score_answered(benchmarks[name], options) for name in BENCHMARKS]
    return results[-1]


def _answer(place: Quickstart, benchmark: str, control: str | None) -> Answered:
    return answer_benchmark(
        _predictor(place.model),
        benchmark,
        place.data,
        place.root,
        CONTROLS,
        rounds=(control,),
        roots=place.media,
        generation=GenerationOptions(max_new_tokens=96),
        batch_size=32,
    )


@lru_cache(maxsize=1)
def _predictor(model: Path) -> Predictor:
    """Return the model of a process, which answers several rounds."""
    return Predictor.from_pretrained(model)


def _questions(place: Quickstart) -> int:
    return (1 + len(CONTROLS)) * sum(line_count(place.data / name / "test.jsonl") for name in BENCHMARKS)


def _answers(place: Quickstart) -> int:
    return sum(map(line_count, (place.root / PREDICTIONS).glob("*.jsonl")))


@contextmanager
def _step(console: Console, title: str) -> Iterator[None]:
    console.print(f"[bold]{title}[/bold]")
    begun = time.monotonic()
    yield
    console.print(f"     done in {time.monotonic() - begun:.0f} s")


def _say_what_next(place: Quickstart, results: dict[str, Any], minutes: float, console: Console) -> None:
    for name in BENCHMARKS:
        found = results["benchmarks"][name]
        accuracy = found["model"]["closed_accuracy"]["value"]
        blind = ", ".join(
            f"{control} {found['controls'][control]['closed_accuracy']['value']:.1%}" for control in CONTROLS
        )
        console.print(f"{name}: closed accuracy [bold]{accuracy:.1%}[/bold] on held-out patients ({blind})")
        if lowest := weakest(found):
            console.print(f"  lowest: {lowest}", highlight=False, soft_wrap=True)
    console.print(f"All of it took {minutes:.1f} minutes. Open [bold]{place.root / 'report.html'}[/bold]")
    console.print(
        f"\nWhat to run next ({place.dicom} and {place.radiograph} are a held-out patient, {place.report} is the true report):",
        highlight=False,
        soft_wrap=True,
    )
    medmvl = command_name()
    for arguments, purpose in (
        (f'ask --model {place.model} --volume {place.dicom} "Is there a pleural effusion?"', "ask about a CT"),
        (f"demo --model {place.model}", "look and ask in the browser"),
        ("data sample export", "begin docs/first-model.md: from a hospital's export to a fine-tuned model"),
    ):
        console.print(f"  {medmvl} {arguments}", highlight=False, soft_wrap=True)
        console.print(f"      [dim]{purpose}[/dim]")


def command_name() -> str:
    """Return how `medmvl` is called from here: its path if the shell would not find it."""
    script = Path(sys.executable).with_name("medmvl")
    return "medmvl" if shutil.which("medmvl") or not script.is_file() else os.path.relpath(script)
