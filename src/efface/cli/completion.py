"""What a shell offers behind an option: names and folders. Where nothing begins like the word at hand, shells offer files."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

Offers = Iterable[str | tuple[str, str]]
"""Words, some with what they are."""
Complete = Callable[[str], Offers]
SAE_FILES = ("cfg.json", "params.npz")
"""What a folder that holds an SAE has one of: all formats but Gemma Scope's write `cfg.json`."""
DEPTH, MOST = 3, 2000
"""How deep, and into how many folders, a folder of a kind is looked for."""
SKIPPED = ("node_modules", "__pycache__", "site-packages")


def silent(complete: Callable[..., Offers]) -> Callable[..., Offers]:
    """A fault while completing offers nothing: a traceback would land in the command line that is being typed."""

    @functools.wraps(complete)
    def guarded(**given: object) -> Offers:
        try:
            return list(complete(**given))
        except Exception:  # whatever it is, the command itself will say it
            return []

    return guarded


def one_of(*words: str) -> Complete:
    """A fixed choice."""

    def complete(incomplete: str) -> Offers:
        return words

    return complete


@silent
def models(incomplete: str) -> Offers:
    """Aliases of both kinds of hosts."""
    from ..llm.aliases import ALIASES, packaged_models
    from ..t2i.aliases import ALIASES as PIPELINES

    return [*((a.name, a.model) for a in ALIASES.values()), *packaged_models().items(), *PIPELINES.items()]


@silent
def concepts(incomplete: str) -> Offers:
    """Packaged concepts; of the generated ones, those of families that the word may still mean."""
    from ..deactivate.concept import GENERATED, generated_concepts, packaged_concepts

    families = [f for f in GENERATED if f"{f}/".startswith(incomplete) or incomplete.startswith(f"{f}/")]
    return [*sorted(packaged_concepts()), *(generated_concepts(families) if families else [])]


@silent
def icons_concepts(incomplete: str) -> Offers:
    """The same of the miniature alone, without the family's name."""
    from ..t2i.icons.concepts import names

    return names()


@silent
def pipelines(incomplete: str) -> Offers:
    """Aliases of image models."""
    from ..t2i.aliases import ALIASES

    return ALIASES.items()


@silent
def saes(incomplete: str) -> Offers:
    """Folders that hold an SAE, folders of several, and aliases whose SAEs are packaged."""
    from ..t2i.aliases import ALIASES, packaged_saes

    found = list(folders(incomplete, SAE_FILES))
    parents = [str(Path(f).parent) for f in found]
    several = [p for p in dict.fromkeys(parents) if parents.count(p) > 1 and p != "."]
    return [*several, *found, *(a for a in ALIASES if packaged_saes(a))]


@silent
def edits(incomplete: str) -> Offers:
    """Edit folders."""
    return folders(incomplete, ("edit.json",))


@silent
def gates(incomplete: str) -> Offers:
    """Gate folders."""
    return folders(incomplete, ("gate.json",))


@silent
def results(incomplete: str) -> Offers:
    """Evaluation folders."""
    return folders(incomplete, ("result.json",))


@silent
def attacks(incomplete: str) -> Offers:
    """Attacks on language models."""
    from ..llm.attacks.registry import attacks as registered

    return [("all", "every attack that applies"), *((a.name, a.paper) for a in registered())]


@silent
def judges(incomplete: str) -> Offers:
    """Families of judges, their heads, and the two copies of each."""
    heads = [f"icons/{h}" for h in ("object", "style", "flag")]
    return ["icons", *heads, *(f"{h}/{copy}" for h in heads for copy in "AB")]


@silent
def architectures(incomplete: str) -> Offers:
    """Kinds of SAEs."""
    from ..sae.config import ARCHITECTURES

    return ARCHITECTURES


@silent
def domains(incomplete: str) -> Offers:
    """Domains of the synthetic world."""
    from ..llm.synthetic.world import packaged_world

    return list(packaged_world().things)


@silent
def settings(ctx: Any, incomplete: str) -> Offers:
    """Settings of the eraser whose command it is: each with its choices, or with its default."""
    from dataclasses import MISSING, fields
    from typing import get_type_hints

    from ..base.config import choices, field_docs
    from ..deactivate.registry import methods

    method = next((m for m in methods() if m.name == ctx.info_name), None)
    if method is None:
        return []
    config = method.load_config()
    docs, kinds = field_docs(config), get_type_hints(config)
    values = {f.name: choices(kinds[f.name]) or ["" if f.default in (MISSING, None) else str(f.default)] for f in fields(config)}
    return [(f"{name}={value}", docs.get(name, "")) for name, some in values.items() for value in some]


@silent
def cache_names(incomplete: str) -> Offers:
    """Entries of the cache, and kinds of them."""
    from ..base.cache import OTHER, entries

    found = [e for e in entries() if e.kind != OTHER]
    return [*dict.fromkeys(e.kind for e in found), *(e.name for e in found)]


def folders(incomplete: str, markers: tuple[str, ...]) -> Iterator[str]:
    """Folders that hold one of the files `markers`, at most three levels below the folder that is being typed; hidden ones are passed over."""
    typed = incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""
    root = Path(typed).expanduser() if typed else Path()
    for folder, inner, files in islice(os.walk(root), MOST):
        depth = len(Path(folder).relative_to(root).parts)
        inner[:] = [] if depth >= DEPTH else sorted(n for n in inner if not n.startswith(".") and n not in SKIPPED)
        if depth and any(m in files for m in markers):
            yield typed + Path(folder).relative_to(root).as_posix()
