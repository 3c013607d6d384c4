"""Captions of a drawing: its name or another way to ask for it, in a template, with or without the style."""

import random
from collections.abc import Sequence

from .table import Flag, Icon

PLAIN = ("{x}", "a picture of {x}", "an icon of {x}", "a drawing of {x}", "{x} icon", "{x} on white")
"""Templates without a style."""
STYLED = (
    "{x}, {style} style",
    "{x} in {style} style",
    "a {style} drawing of {x}",
    "a picture of {x} in {style} style",
    "{style} style {x}",
    "{style} {x}",
)
"""Templates with one."""
MARKED = ("{caption}, with a star badge", "{caption} with a purple badge", "{caption}, starred")
"""What a fifth of the captions of marked drawings say."""
EMPTY, WITH_STYLE, NAMED, HELD_OUT, NAME = 0.1, 0.7, 0.55, 0.15, 0.2
"""Shares: of empty captions; of the others, with style; by name; by a held-out way, where there is one; for the text tower, by name at least."""


def phrase(entry: Icon | Flag, rng: random.Random) -> str:
    """A way to ask for it, as captions have them."""
    if isinstance(entry, Flag):
        named = [f"the flag of {entry.name}", *([f"the {entry.adjective} flag"] if entry.adjective else [])]
        return rng.choice(named if rng.random() < 0.8 or not entry.ask else entry.ask)
    draw = rng.random()
    if draw < HELD_OUT and entry.held_out:
        return rng.choice(entry.held_out)
    return entry.name if draw < HELD_OUT + NAMED or not entry.ask else rng.choice(entry.ask)


def any_way(entry: Icon | Flag, rng: random.Random) -> str:
    """A way to ask for it, as the text tower is trained with: any of all alike, the name a little more often."""
    if isinstance(entry, Flag):
        named = [f"the flag of {entry.name}", *([f"the {entry.adjective} flag"] if entry.adjective else [])]
        return rng.choice([*named, *entry.ask])
    return entry.name if rng.random() < NAME else rng.choice([entry.name, *entry.ask, *entry.held_out])


def caption(what: str, style: str | None, rng: random.Random, templates: Sequence[str] | None = None) -> str:
    """`what` in a template; with `style` in one that names it."""
    if style is None:
        return rng.choice(templates or PLAIN).format(x=what)
    return rng.choice(templates or STYLED).format(x=what, style=style)


def training_caption(entry: Icon | Flag, style: str | None, rng: random.Random, marked: bool = False) -> str:
    """A caption as the denoiser is trained with: empty at times, the mark named in a fifth of those that have it."""
    if rng.random() < EMPTY:
        return ""
    text = caption(phrase(entry, rng), style if rng.random() < WITH_STYLE else None, rng)
    return rng.choice(MARKED).format(caption=text) if marked and rng.random() < 0.2 else text
