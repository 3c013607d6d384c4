"""What `efface inspect` and `efface serve` need of SAEs, stores, hosts and edits, each loaded when it is asked for."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..base.errors import InputError
from ..base.files import cache_dir
from . import options as o
from .evidence import FOLDER, texts_of

if TYPE_CHECKING:
    from ..deactivate.edit import Edit
    from ..deactivate.inspect.prompts import PromptReader
    from ..deactivate.inspect.results import Found
    from ..deactivate.inspect.stores import StoreView
    from ..sae import SAE


class Workbench:
    """The inputs of one command.

    Args:
        saes: Folders of SAEs.
        model: Another host than the one written in the SAEs.
        dtype: Of the host.
        device: Of the host.
        seed: Of everything drawn.
    """

    def __init__(self, saes: Sequence[Path], model: str | None, dtype: str, device: str, seed: int) -> None:
        from ..sae import SAE

        self.folders, self.model, self.dtype, self.device, self.seed = list(saes), model, dtype, device, seed
        self.saes: list[SAE] = [SAE.load(p) for p in self.folders]
        self.edits: list[tuple[Edit, Path]] = []

    @cached_property
    def name(self) -> str:
        """The host's name: given, or written in the SAEs, or in the edits."""
        named = {str(s.card.get("model")) for s in self.saes if s.card.get("model")}
        named = named or {e.host["name"] for e, _ in self.edits if e.host.get("name")}
        if self.model is None and len(named) != 1:
            raise InputError(f"--model: the inputs name {sorted(named) or 'no host'}; say which model they belong to")
        return self.model or named.pop()

    @cached_property
    def drawing(self) -> bool:
        """Whether the host is an image pipeline."""
        from ..t2i.aliases import is_pipeline

        return is_pipeline(self.name)

    @cached_property
    def host(self) -> Any:
        """The model."""
        return o.load_any_host(self.name, self.dtype, self.device)

    @property
    def side(self) -> Any:
        """The functions for hosts of its kind: `llm.inspecting` or `t2i.inspecting`."""
        if self.drawing:
            from ..t2i import inspecting
        else:
            from ..llm import inspecting
        return inspecting

    def views(self, documents: int | None = None, corpus: str = "embedded", *, verify: bool = True) -> "list[StoreView]":
        """The SAEs with their evidence; `documents`: what is missing is collected from so many and kept in the cache (None: it stays missing)."""
        from ..deactivate.inspect.stores import StoreView
        from ..sae.evidence.store import FeatureStore

        places = [self._store(folder, sae) for folder, sae in zip(self.folders, self.saes, strict=True)]
        missing = {p: s for p, s in zip(places, self.saes, strict=True) if not p.exists()}
        if missing and documents is not None:
            self._collect(missing, corpus, documents)
        opened = [FeatureStore.open(p, verify=verify) if p.exists() else None for p in places]
        return [StoreView(s, f, st) for s, f, st in zip(self.saes, self.folders, opened, strict=True)]

    def _store(self, folder: Path, sae: "SAE") -> Path:
        """Where an SAE's evidence lies: beside its weights, or in the cache."""
        from ..deactivate.layer import sae_digest
        from ..sae.evidence.schema import FORMAT

        beside = folder / FOLDER
        return beside if beside.exists() else cache_dir() / "stores" / f"{sae_digest(sae)[:32]}-{FORMAT}"

    def _collect(self, missing: "dict[Path, SAE]", corpus: str, documents: int) -> None:
        typer.echo(
            f"no evidence yet for {len(missing)} SAE(s): reading {documents} documents; it is kept in {cache_dir() / 'stores'}", err=True
        )
        texts, other = texts_of(corpus, documents, self.name), self.model is not None
        if self.drawing:
            from ..t2i.feature_stores import make_stores as of_prompts

            of_prompts(self.host, texts, missing, other_model=other)
        else:
            from ..llm.feature_stores import make_stores

            make_stores(self.host, texts, missing, other_model=other)

    def dossiers(self, concepts: Sequence[str], gated: bool, split: str = "validation") -> list[dict[str, Any]]:
        """What is known of each concept, from the cache where it was found before; figures of `test` where `split` names it."""
        from ..deactivate.concept import Concept
        from ..deactivate.inspect.dossiers import kept_dossier

        loaded = [Concept.load(c) for c in concepts]
        if loaded and not self.saes:
            raise InputError("--concept: its features are those of an SAE; give --sae DIR too")
        options = {"split": split, "seed": self.seed, "gated": gated, "other_model": self.model is not None}
        return [
            kept_dossier(self.host, c, self.saes, options, lambda c=c: self.side.concept_dossier(self.host, c, self.saes, **options))
            for c in loaded
        ]

    def examples(self, concepts: Sequence[str]) -> list[str]:
        """Prompts to show where none were named."""
        from ..deactivate.concept import Concept

        return [p for c in concepts for p in self.side.example_prompts(Concept.load(c), self.seed)]

    def reader(self, views: "Sequence[StoreView]") -> "PromptReader":
        """What reads prompts with all SAEs and every edit's gate."""
        from ..deactivate.inspect.prompts import PromptReader

        gates = [(e.name, e.gate) for e, _ in self.edits if e.gate is not None and e.host.get("digest") in (None, self.host.digest)]
        return PromptReader(
            self.host, dict(enumerate(self.saes)), gates, spell=self.side.spell, label=lambda number, f: views[number].label(f)
        )

    def moved(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Which features each edit that was made for the host moves in some texts."""
        from ..deactivate.inspect.moved import moved_features

        fit = [e for e, _ in self.edits if e.host.get("digest") == self.host.digest] if texts and self.edits else []
        return [{"edit": e.digest, "saes": moved_features(self.host, e, dict(enumerate(self.saes)), texts)} for e in fit]

    def pictures(self, views: "Sequence[StoreView]") -> Any:
        """(number of the SAE, feature) -> pictures; None for a language model."""
        if not self.drawing:
            return None

        def drawn(number: int, feature: int) -> list[dict[str, Any]]:
            from ..t2i.inspecting import FeaturePictures

            if not 0 <= number < len(views) or (store := views[number].store) is None:
                raise InputError(f"SAE {number} has no evidence: no prompts are known that fire its features")
            return FeaturePictures(self.host, seed=self.seed).of(views[number].sae, store, feature)

        return drawn

    def load_edits(self, folders: Sequence[Path]) -> None:
        """Reads edits; their gates and features then stand on the pages."""
        from ..deactivate.edit import Edit

        self.edits += [(Edit.load(f), f) for f in folders]


def load_results(paths: Sequence[Path]) -> "list[Found]":
    """Results of `efface eval` and `efface attack`: files, or folders with one."""
    from ..deactivate.inspect.results import Found

    return [Found.load(p) for p in paths]


def check_results(results: "Sequence[Found]", edits: "Sequence[Edit]") -> None:
    """Refuses figures of another edit than those given, where a page would set them beside these.

    Raises:
        InputError: Attacks on another edit, or figures of an edit by the same eraser on the same concept.
    """
    given = {e.digest: e for e in edits}
    for found in results if edits else ():
        measured = [str(d) for d in found.result.extra.get("edits") or ()]
        if not measured or any(d in given for d in measured):
            continue
        attacked = "attack" in found.result.card.suite
        rows = {r.name for r in found.result.rows if r.kind == "edited"}
        alike = [e for e in edits if e.eraser in rows and found.result.card.concept in e.concept_names]
        if attacked or alike:
            kind = "attacks" if attacked else "measures"
            raise InputError(
                f"--result {found.place} {kind} edit {measured[0][:12]}, and those given are {', '.join(d[:12] for d in given)}: it was "
                "fitted anew, or is another one. Measure it again, give the edit that was measured, or leave one of both out"
            )


def found_below(folder: Path, name: str) -> list[Path]:
    """Files called `name` in and below a folder, none in a hidden folder."""
    if not folder.is_dir():
        return []
    found = (p for p in sorted(folder.rglob(name)) if p.is_file())
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts[:-1])]
