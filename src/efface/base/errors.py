"""The package's exceptions.

`InputError` and its children are the user's to mend: the command line prints them without a traceback and exits with 2.
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path


class EffaceError(Exception):
    """Base of everything this package raises on purpose."""


class InputError(EffaceError, ValueError):
    """The input is at fault: the message names the field, what was found and the way out."""


class UnknownName(InputError, KeyError):
    """A name that matches nothing; the message ends with the nearest known names.

    Args:
        kind: What was looked up («hook point», «architecture», …).
        name: What was asked for.
        known: What there is.
        hint: How to see all of them, or what else would do.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.nearest = kind, name, nearest(name, known)
        did_you_mean = f"; nearest: {', '.join(self.nearest)}" if self.nearest else ""
        super().__init__(f"unknown {kind} {name!r}{did_you_mean}{'. ' + hint if hint else ''}")

    def __str__(self) -> str:
        return str(self.args[0])


class HookPointNotFound(UnknownName):
    """A hook point that the host does not have."""


class MatchedNothing(InputError):
    """A selection, pattern or filter that left nothing: never a silent no-op."""


class ArtefactError(InputError):
    """A file or folder that is corrupt, truncated, of another format, or made for another model."""


class NumericsError(EffaceError, ArithmeticError):
    """NaN or infinity where numbers must be finite."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` known names closest to `name`; the first few known ones where none is close."""
    names = sorted(set(map(str, known)))
    folded = {k.casefold(): k for k in reversed(names)}
    close = get_close_matches(name.casefold(), list(folded), n=n, cutoff=0.4)
    return [folded[c] for c in close] or names[:n]


def near_paths(path: Path, fits: Callable[[Path], bool] = Path.exists) -> str:
    """`; nearest: …` with what lies beside a path that is not there, is called like it and `fits`; "" where there is nothing."""
    try:
        beside = {p.name for p in path.parent.iterdir() if not p.name.startswith(".") and fits(p)}
    except OSError:
        return ""
    close = get_close_matches(path.name, sorted(beside - {path.name}), n=2, cutoff=0.6)
    return f"; nearest: {', '.join(str(path.parent / n) for n in close)}" if close else ""
