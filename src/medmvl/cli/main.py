"""`medmvl`: the command line with all command groups."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from medmvl import __version__
from medmvl.cli import challenge, checkpoint, checkpoint_card, checkpoint_questions, data_check, list_parts, predict
from medmvl.cli.ask import ask
from medmvl.cli.compare import compare
from medmvl.cli.data_audit import audit as data_audit
from medmvl.cli.data_cache import cache as data_cache
from medmvl.cli.data_convert import CONTEXT as CONVERT_CONTEXT
from medmvl.cli.data_convert import convert as data_convert
from medmvl.cli.data_deidentify import deidentify as data_deidentify
from medmvl.cli.data_pack import pack as data_pack
from medmvl.cli.data_sample import sample as data_sample
from medmvl.cli.data_show import show as data_show
from medmvl.cli.demo import demo
from medmvl.cli.dicomweb import dicomweb
from medmvl.cli.evaluate import evaluate
from medmvl.cli.explain import explain
from medmvl.cli.failures import one_line_failures, print_any_text
from medmvl.cli.fetch import fetch
from medmvl.cli.node import node
from medmvl.cli.quickstart import quickstart
from medmvl.cli.serve import serve
from medmvl.cli.study import study
from medmvl.cli.train import train
from medmvl.data.read_spelling import spell_flags, spell_recipe
from medmvl.openmp import wait_as_fits


def _group(text: str, *, completion: bool = False) -> typer.Typer:
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        add_completion=completion,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _group("Build, train, evaluate and deploy small medical vision-language models.", completion=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medmvl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Build, train, evaluate and deploy small medical vision-language models."""


app.command()(quickstart)
app.command()(train)
app.command()(predict.predict)
app.command()(predict.score)
app.command()(ask)
app.command()(explain)
app.command()(evaluate)
app.command()(compare)
app.command()(demo)
app.command()(serve)
app.command()(fetch)
app.command()(study)
app.command()(dicomweb)
app.add_typer(node, name="node")
app.command("list")(list_parts.list_parts)

data = _group("Convert, de-identify, check, show and cache data sets.")
data.command("convert", context_settings=CONVERT_CONTEXT)(data_convert)
data.command("deidentify")(data_deidentify)
data.command()(data_check.check)
data.command("audit")(data_audit)
data.command("show")(data_show)
data.command("cache")(data_cache)
data.command("pack")(data_pack)
data.command("sample")(data_sample)
app.add_typer(data, name="data")

challenges = _group("Score predictions of public challenges on CT.")
challenges.command()(challenge.vlm3d)
challenges.command()(challenge.rexgroundingct)
app.add_typer(challenges, name="challenge")

checkpoints = _group("Convert, export, merge, inspect, describe and upload checkpoints.")
checkpoints.command()(checkpoint.convert)
checkpoints.command()(checkpoint.export)
checkpoints.command()(checkpoint.merge)
checkpoints.command()(checkpoint.inspect)
checkpoints.command()(checkpoint_questions.questions)
checkpoints.command()(checkpoint.calibrate)
checkpoints.command()(checkpoint_card.card)
checkpoints.command()(checkpoint_card.push)
app.add_typer(checkpoints, name="checkpoint")


#: Commands that take reading options otherwise than by flags: from a recipe, or from a protocol, which spells them earlier.
_SPELLINGS: dict[str, Callable[[str], str]] = {
    "train": spell_recipe,
    "compare": spell_recipe,
    "study": str,
    "dicomweb": str,
    "node": str,
}


def main() -> None:
    """Run the command line. `--debug` may stand anywhere on it."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    print_any_text()
    wait_as_fits()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of libraries do not belong in a log
    with one_line_failures(debug, _SPELLINGS.get(arguments[0] if arguments else "", spell_flags)):
        app(args=arguments)


if __name__ == "__main__":
    main()
