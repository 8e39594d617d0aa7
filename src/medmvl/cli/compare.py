"""`medmvl compare`: train, evaluate and tabulate a grid of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    matrix: Annotated[Path, typer.Argument(help="YAML file: a recipe, axes with choices, seeds, benchmarks.")],
    out: Annotated[Path, typer.Option(help="Folder of the comparison; the same command resumes it.")],
    jobs: Annotated[
        int, typer.Option(help="Trainings and evaluations at a time; above 1 on Ray (extra 'ray').", min=1)
    ] = 1,
    processes: Annotated[int, typer.Option(help="Processes per training, one GPU each (torchrun).", min=1)] = 1,
    list_runs: Annotated[bool, typer.Option("--list", help="Only list the jobs and whether they are done.")] = False,
) -> None:
    """Run a comparison and write compare.json, table.md and report.html."""
    from medmvl.experiments.compare import compare as run_comparison
    from medmvl.experiments.compare import expand, load_matrix
    from medmvl.experiments.compare.comparison import Plan

    if list_runs:
        loaded = load_matrix(matrix)
        for job in Plan(loaded, expand(loaded, matrix.parent), out, processes).jobs():
            typer.echo(("done   " if job.done() else "to do  ") + job.what)
        return
    run_comparison(matrix, out, jobs=jobs, processes=processes, announce=lambda text: typer.echo(text, err=True))
    typer.echo((out / "table.md").read_text(encoding="utf-8"))
    typer.echo(f"Results are in {out / 'report.html'}")
