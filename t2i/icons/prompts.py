"""Prompts that an SAE of the miniature's text encoder is trained on: every name and known way to ask, in the templates of `train`. Torch-free."""

from .concepts import SPLITS, flags
from .packs import STYLES
from .table import Table, packaged_table


def training_prompts(table: Table | None = None) -> list[str]:
    """Each once, in the order of the table. Held-out ways to ask and the templates of `validation` and `test` are not among them."""
    table = table or packaged_table()
    without, with_style = SPLITS["train"]
    things = list(dict.fromkeys(w for icon in table.icons.values() for w in (icon.name, *icon.ask)))
    countries = [
        w for f in flags(table).values() for w in (f"the flag of {f.name}", *([f"the {f.adjective} flag"] if f.adjective else []), *f.ask)
    ]
    held_out = {w for icon in table.icons.values() for w in icon.held_out}
    plain = [t.format(x=w) for w in (*things, *countries) if w not in held_out for t in without]
    styled = [t.format(x=w, style=p.style) for w in things if w not in held_out for t in with_style for p in STYLES]
    return list(dict.fromkeys([*plain, *styled]))
