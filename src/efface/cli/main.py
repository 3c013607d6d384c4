"""`efface`: the table of commands, and how errors become exit statuses.

Exit status 0: done; 2: the input is at fault (one or two lines on stderr, no traceback);
130: interrupted, a complete checkpoint is there; 1: anything else.
"""

import logging
import os
import sys
import traceback

import click
import typer

from .. import __version__
from ..base.errors import InputError
from . import editing, evaluating, features, generating, listing, training
from .demo import demo

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    help="Interpret a model with sparse autoencoders, take a concept out of it, and prove what that did.",
)

app.command("models")(listing.models)
app.command("methods")(listing.methods)
app.command("concepts")(listing.concepts)
app.command("train")(training.train)
app.command("features")(features.features)
app.command("gate")(features.gate)
app.add_typer(editing.erase_app(), name="erase")
app.command("apply")(editing.apply)
app.command("undo")(editing.undo)
app.command("export")(editing.export)
app.command("eval")(evaluating.evaluate)
app.command("compare")(evaluating.compare)
app.command("bench")(evaluating.bench)
app.command("generate")(generating.generate)
app.command("doctor")(listing.doctor)
app.add_typer(listing.cache_app, name="cache")
app.command("demo")(demo)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main(argv: list[str] | None = None) -> None:
    """Console entry point."""
    logging.basicConfig(level=os.environ.get("EFFACE_LOG", "INFO"), format="%(message)s", stream=sys.stderr)
    for noisy in ("transformers", "httpx", "matplotlib", "numba"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    sys.exit(run(argv))


def run(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    try:
        app(args=argv, standalone_mode=False)
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        e.show()
        return 2
    except InputError as e:
        typer.echo(f"efface: {e}", err=True)
        return 2
    except (KeyboardInterrupt, click.Abort):
        typer.echo("efface: interrupted; what is complete is kept, run the same command with --resume where it has one", err=True)
        return 130
    except Exception:  # the last line of defence: status 1 with the traceback that a bug report needs
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
