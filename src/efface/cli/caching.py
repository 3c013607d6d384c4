"""`efface cache ls | rm`: what the cache holds, and making room."""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from ..base.cache import Entry, entries, remove, select
from ..base.errors import InputError
from ..base.files import cache_dir
from . import options as o
from .completion import cache_names

cache_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The cache: models, drawings, pictures of evaluations; what is there, and making room.",
)


@cache_app.command("ls")
def cache_ls(as_json: o.Json = False) -> None:
    """What lies in the cache by kind, with sizes and last use."""
    found = entries()
    total = sum(e.bytes for e in found)
    cells = [[e.name, e.kind, o.size(e.bytes), _when(e.used), e.kept or e.about] for e in found]
    text = o.table(["name", "kind", "size", "last use", ""], cells) if found else "nothing"
    kinds = {k: sum(e.bytes for e in found if e.kind == k) for k in dict.fromkeys(e.kind for e in found)}
    value = {"cache": str(cache_dir()), "bytes": total, "kinds": kinds, "entries": [_row(e) for e in found]}
    o.emit(value, f"{text}\n{cache_dir()}: {o.size(total)}", as_json)


@cache_app.command("rm")
def cache_rm(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Entries as `efface cache ls` prints them, or kinds, for all of one.", autocompletion=cache_names),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Everything but the counts of looks at test, and what is not efface's.")
    ] = False,
    older_than: Annotated[
        float | None, typer.Option("--older-than", help="Only what was not used for so many days; without names, of everything.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: o.Json = False,
) -> None:
    """Removes entries, after asking, and says what was freed. Nothing outside the cache is touched, no link is followed."""
    found = entries()
    chosen = select(found, names or [], everything=everything, older_than=older_than, now=time.time())
    if chosen and not yes:
        _ask(chosen, as_json)
    freed = sum(remove(e) for e in chosen)
    stayed = [e.name for e in found if e not in chosen and e.kept] if everything else []
    lines = [*(f"removed {e.name} ({o.size(e.bytes)})" for e in chosen), f"freed {o.size(freed)}" if chosen else "nothing to remove"]
    lines += [f"kept {e.name}: {e.kept}" for e in found if e.name in stayed]
    o.emit({"removed": [e.name for e in chosen], "freed": freed, "kept": stayed}, "\n".join(lines), as_json)


def _ask(chosen: Sequence[Entry], as_json: bool) -> None:
    """Goes on if the user says so.

    Raises:
        InputError: Nobody can be asked here.
        Exit: The answer was no (status 1).
    """
    what = f"{len(chosen)} entr{'y' if len(chosen) == 1 else 'ies'}, {o.size(sum(e.bytes for e in chosen))}"
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InputError(f"cache rm would remove {what}, and asks first, which it cannot do here; add --yes")
    for e in chosen:
        typer.echo(f"  {e.name} ({o.size(e.bytes)}){f': {e.kept}' if e.kept else ''}", err=True)
    if not typer.confirm(f"Remove {what}?", err=True):
        typer.echo("nothing was removed", err=True)
        raise typer.Exit(1)


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name, "kind": entry.kind, "bytes": entry.bytes, "files": entry.files,
        "used": datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds"), "about": entry.about, "kept": entry.kept, "path": str(entry.path),
    }  # fmt: skip


def _when(seconds: float) -> str:
    """A day, and how long ago it was."""
    days = int((time.time() - seconds) / 86400)
    ago = {0: "today", 1: "yesterday"}.get(days, f"{days} days ago")
    return f"{datetime.fromtimestamp(seconds).date()} ({ago})"
