"""`medmvl`: assembles the command groups and turns a user's mistake into one message and exit status 2."""

from __future__ import annotations

import os
import sys

import typer

from medmvl.cli import checkpoint, data_check, list_parts, predict
from medmvl.cli.compare import compare
from medmvl.cli.data_audit import audit as data_audit
from medmvl.cli.data_cache import cache as data_cache
from medmvl.cli.data_convert import CONTEXT as CONVERT_CONTEXT
from medmvl.cli.data_convert import convert as data_convert
from medmvl.cli.data_show import show as data_show
from medmvl.cli.demo import demo
from medmvl.cli.evaluate import evaluate
from medmvl.cli.fetch import fetch
from medmvl.cli.quickstart import quickstart
from medmvl.cli.train import train
from medmvl.errors import MedMVLError


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


app = _group("Build, train, evaluate and deploy small medical vision-language models.")
app.command()(quickstart)
app.command()(train)
app.command()(predict.predict)
app.command()(predict.score)
app.command()(predict.ask)
app.command()(evaluate)
app.command()(compare)
app.command()(demo)
app.command()(fetch)
app.command("list")(list_parts.list_parts)

data = _group("Convert, check, show and cache data sets.")
data.command("convert", context_settings=CONVERT_CONTEXT)(data_convert)
data.command()(data_check.check)
data.command("audit")(data_audit)
data.command("show")(data_show)
data.command("cache")(data_cache)
app.add_typer(data, name="data")

checkpoints = _group("Convert, export, merge and inspect checkpoints.")
checkpoints.command()(checkpoint.convert)
checkpoints.command()(checkpoint.export)
checkpoints.command()(checkpoint.merge)
checkpoints.command()(checkpoint.inspect)
app.add_typer(checkpoints, name="checkpoint")


def main() -> None:
    """Run the command line. `--debug` anywhere on it shows the traceback of a user's mistake as well."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars are for people; in a log they are noise
    try:
        app(args=arguments)
    except MedMVLError as error:
        if debug:
            raise
        typer.echo(f"medmvl: {error}", err=True)
        raise SystemExit(2) from None
    except BrokenPipeError:
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
