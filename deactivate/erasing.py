"""`erase`: one call for every registered eraser."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.config import from_mapping
from ..base.errors import InputError, MatchedNothing
from .concept import Concept
from .registry import method as registered

if TYPE_CHECKING:
    from ..sae import SAE
    from .edit import Edit
    from .hosts import Host

_HOSTS = {"llm": "language models", "t2i": "image pipelines"}


def erase(
    method: str,
    host: "Host",
    concepts: "Concept | str | Path | Sequence[Concept | str | Path]",
    saes: "Sequence[SAE]" = (),
    *,
    preserve: Sequence[str] | None = None,
    seed: int = 0,
    **config: Any,
) -> "Edit":
    """Fits an eraser on a host and returns its edit; the host is left as it was.

    Args:
        method: A name of the registry (`efface methods`).
        host: What to erase from.
        concepts: One or several: concepts, concept files or packaged names.
        saes: For methods that need them.
        preserve: Texts or prompts that must not change; None: the concepts' neighbours and the host's general pool.
        seed: Of everything random in the fit; kept in `edit.seeds`.
        **config: Fields of the method's config.

    Raises:
        UnknownName: An unknown method, setting or concept; names the nearest.
        InputError: Several concepts for a method that takes one, no SAE for one that needs some, or what the method
            itself refuses.
    """
    import torch

    row = registered(method)
    loaded = _load([concepts] if isinstance(concepts, str | Path | Concept) else concepts)
    if len(loaded) > 1 and not row.several_concepts:
        raise InputError(f"{method} takes one concept a fit, {len(loaded)} given; fit one edit each and apply them together")
    if "sae" in row.needs and not saes:
        raise InputError(f"{method} needs an SAE: saes=[SAE.load(DIR)] (--sae DIR); `efface train` makes one")
    kind = "t2i" if getattr(host, "selective", False) else "llm"
    if row.domain not in (kind, "any"):
        raise InputError(
            f"{method} works on {_HOSTS[row.domain]}, and {host.name} is one of the {_HOSTS[kind]}; `efface methods` lists the others"
        )
    if (check := getattr(host, "check_sae", None)) is not None:
        for sae in saes:
            check(sae)
    cls = row.load_config()
    if "seed" in {f.name for f in dataclasses.fields(cls)}:
        config = {"seed": seed, **config}
    settings = from_mapping(cls, config, where=f"config of {method}")
    cuda = [host.device] if host.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        edit = row.load_fit()(host, loaded, preserve, settings, saes=list(saes))
    return dataclasses.replace(edit.bound(host), seeds={"fit": seed, **edit.seeds})


def _load(concepts: Sequence[Concept | str | Path]) -> list[Concept]:
    loaded = [Concept.load(c) for c in concepts]
    if not loaded:
        raise MatchedNothing("erase: no concepts given")
    if len({c.digest for c in loaded}) != len(loaded):
        raise InputError(f"erase: a concept is named twice among {', '.join(c.name for c in loaded)}")
    return loaded
