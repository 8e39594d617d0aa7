"""Training and evaluation of all runs of a matrix; a stage that several runs share is trained once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medmvl.errors import TrainingError
from medmvl.evaluation import expand_benchmarks
from medmvl.experiments.compare.jobs import LOG, Job, Outcome, medmvl_command, run_in_sequence, run_on_ray
from medmvl.experiments.compare.matrix import Matrix, Run, expand, load_matrix
from medmvl.experiments.compare.summary import write_summary
from medmvl.files import OutputLock, PathLike, iter_jsonl, read_json, write_text
from medmvl.training.engine.checkpoints import link_or_copy
from medmvl.training.phantoms import draw_phantoms
from medmvl.training.recipe_io import dump_recipe
from medmvl.training.run_folder import RunFolder

COST = "cost.jsonl"


@dataclass(frozen=True)
class Plan:
    """A matrix and the folder of its runs.

    Attributes:
        matrix: the grid.
        runs: its runs.
        root: the folder of the comparison; a run's folder is `root/runs/<name>`.
        processes: processes per training (torchrun above 1).
    """

    matrix: Matrix
    runs: list[Run]
    root: Path
    processes: int = 1

    def folder(self, run: Run) -> RunFolder:
        """Return the run folder of a run."""
        return RunFolder(self.root / "runs" / run.name)

    def jobs(self) -> list[Job]:
        """Return a job per stage that differs from all others, and one per run to evaluate it."""
        jobs: dict[str, Job] = {}
        owners: dict[str, tuple[Run, str]] = {}
        for run in self.runs:
            previous: tuple[str, ...] = ()
            links: list[tuple[Run, str]] = []
            for index, stage in enumerate(run.recipe.stages):
                key = run.stage_key(index)
                if key not in owners:
                    owners[key] = (run, stage.name)
                    jobs[key] = self._train_job(key, run, stage.name, previous, tuple(links))
                links.append(owners[key])
                previous = (*previous, key)
            name = f"evaluate {run.name}"
            jobs[name] = self._evaluate_job(name, run, previous, tuple(links))
        return list(jobs.values())

    def _train_job(
        self, key: str, run: Run, stage: str, needs: tuple[str, ...], shared: tuple[tuple[Run, str], ...]
    ) -> Job:
        folder = self.folder(run)
        recipe = folder.root / "matrix-recipe.yaml"

        def before() -> None:
            write_text(recipe, dump_recipe(run.recipe))
            self._link(run, shared)

        command = medmvl_command("train", recipe, "--out", folder.root, "--stage", stage, processes=self.processes)
        return Job(
            key,
            f"{run.name}: stage {stage}",
            command,
            folder.root,
            needs,
            before,
            lambda: folder.finished(folder.stage(stage)),
        )

    def _evaluate_job(self, key: str, run: Run, needs: tuple[str, ...], shared: tuple[tuple[Run, str], ...]) -> Job:
        folder, settings = self.folder(run), self.matrix.evaluate
        names = expand_benchmarks(settings.benchmarks)

        def before() -> None:
            self._link(run, shared)
            if not folder.finished(folder.model):
                folder.publish(run.recipe.stages[-1].name)

        def done() -> bool:
            path = folder.root / "results.json"
            return path.is_file() and set(names) <= set(read_json(path)["benchmarks"])

        arguments: list[Any] = ["--model", folder.model, "--data-root", settings.data_root, "--out", folder.root]
        arguments += [word for name in names for word in ("--benchmark", name)]
        arguments += [word for name in settings.controls for word in ("--control", name)]
        arguments += ["--max-new-tokens", settings.max_new_tokens, "--batch-size", settings.batch_size]
        for flag, root in (("--image-root", settings.image_root), ("--volume-root", settings.volume_root)):
            arguments += [flag, root] if root is not None else []
        arguments += ["--log", folder.log, "--title", f"{self.matrix.name}: {run.name}"]
        command = medmvl_command("evaluate", *arguments)
        return Job(key, f"{run.name}: evaluate", command, folder.root, needs, before, done)

    def _link(self, run: Run, shared: tuple[tuple[Run, str], ...]) -> None:
        """Give a run the finished stages that another run trained, and their lines of the log."""
        mine = self.folder(run)
        for owner, stage in shared:
            theirs = self.folder(owner)
            if owner is run or mine.finished(mine.stage(stage)):
                continue
            mine.root.mkdir(parents=True, exist_ok=True)
            link_or_copy(theirs.stage(stage), mine.stage(stage))
            rows = [row for row in iter_jsonl(theirs.log) if row.get("stage") == stage]
            with mine.log.open("a", encoding="utf-8") as handle:
                handle.writelines(json.dumps(row) + "\n" for row in rows)


def compare(
    matrix: PathLike,
    out: PathLike,
    *,
    jobs: int = 1,
    processes: int = 1,
    announce: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train and evaluate every run of a matrix, and write compare.json, table.md and report.html into `out`.

    The same call resumes an unfinished comparison. A stage that several runs share (same model, data, seed and settings up
    to it) is trained once. A run that fails does not stop the others; it is named at the end.

    Args:
        matrix: the YAML file.
        out: the folder of the comparison.
        jobs: trainings and evaluations at a time; more than one run on Ray, which gives each its own GPUs.
        processes: processes per training, on one GPU each (torchrun).
        announce: called with a line when a job ends, and in sequence also when it starts.

    Returns:
        The content of compare.json.

    Raises:
        RecipeError: if the matrix or a variant is not valid.
        TrainingError: if a run failed, after all other runs are finished and the summary is written.
        MissingExtraError: if `jobs` is above 1 and Ray is not installed.
        BusyError: if another process writes into `out`.
    """
    file, root = Path(matrix), Path(out)
    loaded = load_matrix(file)
    plan = Plan(loaded, expand(loaded, file.parent), root, processes)
    with OutputLock(root, folder=True):
        for run in plan.runs:
            draw_phantoms(run.recipe)  # here, since two runs at a time would draw the same files
        outcomes = _run(plan.jobs(), jobs, processes, announce)
        failed = [outcome for outcome in outcomes if outcome.status != 0]
        summary = write_summary(plan.matrix, plan.runs, plan.root, [f"{found.job.what}" for found in failed])
    if failed:
        first = next(found for found in failed if not found.skipped)
        raise TrainingError(
            f"{len(failed)} of {len(outcomes)} jobs did not finish; the first was {first.job.what!r} with exit status "
            f"{first.status}. Its output is in {first.job.folder / LOG}. The table holds the runs that did; the same "
            "command tries the others again."
        )
    return summary


def note_cost(outcome: Outcome) -> None:
    """Add a line to the cost of the run's folder: what, seconds, bytes, exit status; nothing for what did not run."""
    if outcome.skipped:
        return
    row = {
        "job": outcome.job.what.split(": ", 1)[1],
        "seconds": round(outcome.seconds, 2),
        "peak_memory_bytes": outcome.peak_memory,
        "status": outcome.status,
    }
    with (outcome.job.folder / COST).open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")


def _run(jobs: Sequence[Job], at_a_time: int, processes: int, announce: Callable[[str], None]) -> list[Outcome]:
    """Run the jobs in sequence, or on Ray if several may run at a time."""
    if at_a_time == 1:
        return run_in_sequence(jobs, note_cost, announce)
    gpus = processes if torch.cuda.device_count() else 0
    return run_on_ray(jobs, note_cost, announce, at_a_time=at_a_time, gpus_per_job=gpus)
