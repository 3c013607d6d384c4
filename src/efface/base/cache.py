"""What lies in the cache: entries by kind with their sizes and last use, and a removal that never leaves the folder."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import ArtefactError, InputError, UnknownName
from .files import cache_dir, read_json

KINDS: Mapping[str, str] = {
    "models": "models of aliases, made from what was fetched",
    "downloads": "what was fetched: wheels, packs of drawings",
    "icons": "drawings of the miniature",
    "pictures": "base pictures of evaluations",
    "admission": "pictures counted by `efface icons check`",
    "stores": "evidence of SAEs that `efface inspect` collected",
    "inspect": "what pages show of concepts, and their pictures",
    "maps": "maps of features",
    "saes": "SAEs that sae-lens fetched",
    "looks": "counts of looks at test",
}
"""Folder of the cache -> what lies there. Each entry of it is one of the cache's, but `looks`, which is one as a whole."""
FILES: Mapping[str, str] = {"concept-scores.json": "concepts"}
"""File of the cache -> its kind: scores of items while concept files are built."""
WHOLE = "looks"
UNFINISHED, OTHER = "unfinished", "other"
"""Kinds of what a stopped command left behind, and of what is not ours."""
BUSY = 3600.0
"""Seconds for which something unfinished may still be being written."""
DAY = 86400.0


@dataclass(frozen=True)
class Entry:
    """One thing in the cache."""

    name: str
    """As it is removed: `models/smollm2`."""
    kind: str
    """A key of `KINDS`, `concepts`, `unfinished` or `other`."""
    path: Path
    bytes: int
    """Of the files in it; what a link leads to does not count."""
    files: int
    used: float
    """When its largest file was last read, as far as the file system notes it (most do once a day), or anything in it was written; seconds since 1970."""

    @property
    def about(self) -> str:
        """What it is of, where its folder says so: host and concept of pictures."""
        if self.kind != "pictures":
            return ""
        try:
            values = read_json(self.path / "about.json")
            return f"{values['host']}, {values['concept']}"
        except (ArtefactError, OSError, LookupError, TypeError):
            return ""

    @property
    def kept(self) -> str:
        """Why it is removed only by its name, or not at all; "" where it may go with the rest."""
        if self.kind == OTHER:
            return "not efface's: remove it by hand"
        return "the count of looks at test would begin again" if self.kind == "looks" else ""


def entries(root: Path | None = None) -> list[Entry]:
    """Everything in the cache, in the order of names; the root may be a link, nothing below it is followed."""
    root = root or cache_dir()
    return sorted(_entries(root), key=lambda e: e.name) if root.is_dir() else []


def _entries(root: Path) -> Iterator[Entry]:
    for top in _children(root):
        ours = top.is_dir() and not top.is_symlink() and top.name in KINDS
        if ours and top.name != WHOLE:
            yield from (_entry(p, f"{top.name}/{p.name}", UNFINISHED if p.name.startswith(".") else top.name) for p in _children(top))
        elif ours and any(_children(top)):
            yield _entry(top, top.name, WHOLE)
        elif not ours:
            yield _entry(top, top.name, FILES.get(top.name, OTHER) if top.is_file() and not top.is_symlink() else OTHER)


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except PermissionError:
        return []


def _entry(path: Path, name: str, kind: str) -> Entry:
    found = list(_stats(path))
    plain = [s for s in found if stat.S_ISREG(s.st_mode)]
    largest = max(plain, key=lambda s: s.st_size, default=None)
    used = max([s.st_mtime for s in found] + ([largest.st_atime] if largest else []), default=0.0)
    return Entry(name, kind, path, sum(s.st_size for s in plain), len(plain), used)


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Of `path` and all below it, links themselves instead of what they lead to; what goes away meanwhile, or may not be read, is left out."""
    try:
        own = path.lstat()
        yield own
        if stat.S_ISDIR(own.st_mode):
            for child in path.iterdir():
                yield from _stats(child)
    except OSError:
        return


def select(
    found: Sequence[Entry], names: Sequence[str] = (), *, everything: bool = False, older_than: float | None = None, now: float
) -> list[Entry]:
    """The entries that `efface cache rm` means.

    Args:
        found: All entries.
        names: Names of entries, or of kinds, for all entries of one.
        everything: All that may go with the rest.
        older_than: Only what was not used for so many days; alone, of all that may go with the rest.
        now: Seconds since 1970.

    Raises:
        InputError: Nothing was asked for, names beside `everything`, days below 0, or an entry that is not efface's.
        UnknownName: Names the nearest entries.
    """
    if names and everything:
        raise InputError("cache rm: names and --all were given; give one of them")
    if not names and not everything and older_than is None:
        raise InputError("cache rm: name an entry (`efface cache ls` lists them), or give --older-than DAYS or --all")
    if older_than is not None and not older_than >= 0:
        raise InputError(f"--older-than {older_than}: days, at least 0")
    chosen = list(dict.fromkeys(e for n in names for e in _named(found, n))) if names else [e for e in found if not e.kept]
    chosen = [e for e in chosen if e.kind != UNFINISHED or e.name in names or now - e.used > BUSY]
    return [e for e in chosen if older_than is None or now - e.used > older_than * DAY]


def _named(found: Sequence[Entry], name: str) -> list[Entry]:
    name = name.rstrip("/")
    mine = [e for e in found if name in (e.name, e.kind) and not (e.kind == OTHER and e.name != name)]
    if not mine:
        kinds = {e.kind for e in found if e.kind != OTHER}
        raise UnknownName("cache entry", name, [*(e.name for e in found), *kinds], "`efface cache ls` lists them")
    if foreign := [e for e in mine if e.kind == OTHER]:
        raise InputError(f"cache entry {name!r} is {foreign[0].kept} ({foreign[0].path})")
    return mine


def remove(entry: Entry, root: Path | None = None) -> int:
    """Removes an entry and returns the bytes freed; of a link the link alone.

    A folder is renamed first, so that one half removed is never taken for whole.

    Raises:
        ArtefactError: The entry does not lie in the cache: a folder between it and the cache is a link by now.
    """
    root = root or cache_dir()
    if any((root / p).is_symlink() for p in entry.path.relative_to(root).parents if p != Path(".")):
        raise ArtefactError(f"cache entry {entry.name!r} lies behind a link and is left alone ({entry.path}); remove it by hand")
    if entry.path.is_symlink() or not entry.path.is_dir():
        entry.path.unlink(missing_ok=True)
        return entry.bytes
    aside = Path(tempfile.mkdtemp(dir=entry.path.parent, prefix=f".{entry.path.name.lstrip('.')}.removed."))
    os.replace(entry.path, aside / entry.path.name)
    shutil.rmtree(aside)
    return entry.bytes
