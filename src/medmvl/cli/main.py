"""`medmvl`: assembles the command groups and turns a user's mistake into one message and exit status 2."""

from __future__ import annotations

import sys

import typer

from medmvl.errors import MedMVLError

app = typer.Typer(
    name="medmvl",
    help="Build, train, evaluate and deploy small medical vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line. `--debug` anywhere on it shows the traceback of a user's mistake as well."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(args=arguments)
    except MedMVLError as error:
        if debug:
            raise
        typer.echo(f"medmvl: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
