"""Prompts that an SAE of the miniature's text encoder is trained on: every name and known way to ask, in the templates of `train`. Torch-free."""

from .concepts import SPLITS, flags
from .packs import STYLES
from .table import Table, packaged_table


def training_prompts(table: Table | None = None, *, countries: bool = True) -> list[str]:
    """Each once, in the order of the table; those of flags where `countries`.

    Held-out ways to ask and the templates of `validation` and `test` are not among them.
    """
    table = table or packaged_table()
    without, with_style = SPLITS["train"]
    things = list(dict.fromkeys(w for icon in table.icons.values() for w in (icon.name, *icon.ask)))
    named = flags(table).values() if countries else ()
    of_flags = [w for f in named for w in (f"the flag of {f.name}", *([f"the {f.adjective} flag"] if f.adjective else []), *f.ask)]
    held_out = {w for icon in table.icons.values() for w in icon.held_out}
    plain = [t.format(x=w) for w in (*things, *of_flags) if w not in held_out for t in without]
    styled = [t.format(x=w, style=p.style) for w in things if w not in held_out for t in with_style for p in STYLES]
    return list(dict.fromkeys([*plain, *styled]))
