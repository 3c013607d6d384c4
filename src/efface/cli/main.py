"""`efface`: the table of commands, and how errors become exit statuses.

Exit status 0: done; 2: the input is at fault (one or two lines on stderr, no traceback);
130: interrupted, a complete checkpoint is there; 1: anything else, on one line where the cause is known (numbers that
are not finite, a full disk), with a traceback where it is not.
"""

import errno
import logging
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Any, NoReturn

import typer

from .. import __version__
from ..base.errors import EffaceError, InputError
from . import attacking, editing, evaluating, features, generating, inspecting, listing, training
from .caching import cache_app
from .concept_files import concepts
from .demo import demo
from .doctor import doctor
from .icons import icons_app
from .labels import labels
from .synthetic import synthetic_app

BAD_PATHS = (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
"""Errors of the file system that come of the path that was given."""
INTERRUPTED = 130
"""Exit status after an interrupt; typer returns it, by version, where a command was interrupted."""
log = logging.getLogger("efface")
UsageError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""Base of what is wrong with a command line; typer brings its own click or imports it, by version."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    help="Interpret a model with sparse autoencoders, take a concept out of it, and prove what that did.",
)

app.command("models")(listing.models)
app.command("methods")(listing.methods)
app.command("concepts")(concepts)
app.command("train")(training.train)
app.command("features")(features.features)
app.command("labels")(labels)
app.command("gate")(features.gate)
app.add_typer(editing.erase_app(), name="erase")
app.command("apply")(editing.apply)
app.command("undo")(editing.undo)
app.command("export")(editing.export)
app.command("eval")(evaluating.evaluate)
app.command("attack")(attacking.attack)
app.command("attacks")(attacking.attacks)
app.command("compare")(evaluating.compare)
app.command("inspect")(inspecting.inspect)
app.command("serve")(inspecting.serve)
app.command("bench")(evaluating.bench)
app.command("generate")(generating.generate)
app.command("doctor")(doctor)
app.add_typer(cache_app, name="cache")
app.add_typer(icons_app, name="icons")
app.add_typer(synthetic_app, name="synthetic")
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
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(argv))


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM as an interrupt: what was being written beside its place is removed on the way out."""
    raise KeyboardInterrupt


def run(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    try:
        status = app(args=argv, standalone_mode=False, prog_name="efface")
    except typer.Exit as e:
        return e.exit_code
    except UsageError as e:
        typer.echo(_usage(e), err=True)
        return 2
    except InputError as e:
        typer.echo(f"efface: {e}", err=True)
        return 2
    except (EffaceError, OSError) as e:
        log.debug("", exc_info=True)
        typer.echo(f"efface: {reason(e)}", err=True)
        return 2 if isinstance(e, OSError) and e.errno in BAD_PATHS else 1
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as e:  # the last line of defence: status 1 with the traceback that a bug report needs
        if out_of_memory(e):
            log.debug("", exc_info=True)
            typer.echo("efface: out of memory; ask for less (smaller --d-sae, batch or model), or free some and run it again", err=True)
            return 1
        traceback.print_exc()
        return 1
    if status == INTERRUPTED:
        return _interrupted()
    return status if isinstance(status, int) else 0


def _interrupted() -> int:
    typer.echo("efface: interrupted; what is complete is kept, run the same command with --resume where it has one", err=True)
    return INTERRUPTED


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, which torch reports under several names."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and ("allocate memory" in words or "out of memory" in words))


def _usage(error: Any) -> str:
    """What is wrong with the command line, on one line; the help itself where a group was called with nothing."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return error.format_message()
    see = f"; see {error.ctx.command_path} --help" if getattr(error, "ctx", None) else ""
    return f"efface: {error.format_message().rstrip('.')}{see}"


def reason(error: EffaceError | OSError) -> str:
    """One line on what stopped a command whose input was in order: numbers that broke, a disk that is full."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    where = f": {error.filename}" if error.filename else ""
    hint = "; free some space and run it again (what was complete is kept)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{error.strerror}{where}{hint}"


if __name__ == "__main__":
    main()
