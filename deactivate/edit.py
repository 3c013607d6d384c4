"""An edit: what an eraser produces. It lies on a host for a block, for good, or behind a gate; or in a folder."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import InputError, MatchedNothing
from ..base.files import digest, slug
from .parts import Part, WeightsPart, parameter, tensor_digest

if TYPE_CHECKING:
    from .any_gate import AnyGate
    from .concept import Concept
    from .hosts import Host


@dataclass(frozen=True, eq=False)
class Edit:
    """Parts in their order, and where they come from. Plain values in `config`, `evidence`, `seeds`, `cards`.

    Raises:
        MatchedNothing: No parts.
    """

    parts: Sequence[Part]
    eraser: str
    """Name of the method."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its settings: a mapping, or its frozen dataclass."""
    concepts: Sequence["Concept | Mapping[str, str]"] = ()
    """What it takes out; kept as `{name, digest}`."""
    evidence: Sequence[Mapping[str, Any]] | Mapping[str, Any] = ()
    """Per feature, why it was edited."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    cards: Sequence[Mapping[str, Any]] = ()
    """Protocol cards of the figures in its README."""
    gate: "AnyGate | None" = None
    host: Mapping[str, str] = field(default_factory=dict)
    """`{name, digest}` of the host it was fitted on; filled in by `bound`."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise MatchedNothing(f"edit of {self.eraser}: no parts; the eraser found nothing to edit")
        config = self.config
        if dataclasses.is_dataclass(config) and not isinstance(config, type):
            config = dataclasses.asdict(config)
        object.__setattr__(self, "config", _jsonable(dict(config)))
        object.__setattr__(self, "evidence", _jsonable(self.evidence))
        object.__setattr__(self, "cards", _jsonable(self.cards))
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "concepts", tuple(map(_concept_row, self.concepts)))

    @property
    def weights(self) -> tuple[WeightsPart, ...]:
        """Its parts that change weights."""
        return tuple(p for p in self.parts if isinstance(p, WeightsPart))

    @cached_property
    def digest(self) -> str:
        """sha256 of what it does: eraser, settings, concepts, parts, gate. Not of evidence, cards and base."""
        parts = [
            {
                "kind": p.kind,
                "portability": p.portability,
                "settings": p.settings(),
                "tensors": {n: tensor_digest(n, t) for n, t in p.tensors().items()},
            }
            for p in self.parts
        ]
        content = {"eraser": self.eraser, "config": self.config, "concepts": list(self.concepts), "parts": parts}
        return digest({**content, "gate": self.gate.digest if self.gate else None})

    @property
    def everywhere(self) -> bool:
        """Whether it acts on negative and empty prompts too: its parts that act on activations all were made to. A gate rules it out."""
        acting = [p for p in self.parts if not isinstance(p, WeightsPart)]
        return self.gate is None and bool(acting) and all(p.everywhere for p in acting)

    @property
    def concept_names(self) -> list[str]:
        """Names of what it takes out."""
        return [_concept_row(c)["name"] for c in self.concepts]

    @property
    def name(self) -> str:
        """Eraser, concepts and eight digits of the digest: unlike for edits that do unlike things."""
        words = slug(" ".join(self.concept_names) or "edit").rpartition("-")[0]
        return f"{self.eraser}-{words}-{self.digest[:8]}"

    def gated(self, gate: "AnyGate") -> "Edit":
        """The edit behind `gate`: in force for prompts at which it fires, and not there for the others."""
        gate.require_threshold()
        if self.gate is not None:
            raise InputError(f"edit {self.name} has a gate already; gate the edit that it was made from")
        return replace(self, gate=gate)

    def bound(self, host: "Host") -> "Edit":
        """The edit with the base tensors it was made for and the host's name and digest noted. `erase` does it."""
        from .routing import unedited

        parts = tuple(p.bound(host) for p in self.parts)
        with unedited(host):
            return replace(self, parts=parts, host={"name": host.name, "digest": host.digest})

    @contextmanager
    def applied(self, host: "Host", *, force: bool = False, everywhere: bool = False) -> Iterator[Counter[str]]:
        """The edit in force on `host` while the block runs; nests; the base comes back bit for bit, whatever happens.

        A gated edit is in force per prompt in the host's own methods (`logits`, `loss`, `generate`, `token_logprobs`,
        `activations`); calling `host.model` by itself, which knows no prompts, is then refused. On an image host this
        goes for edits that act on activations too, gated or not: they are in force for conditional prompts alone,
        never for the empty or the negative one. An ungated change of weights is what `apply` writes, and is in force
        for all of them.

        Args:
            host: Where it lies.
            force: Put it on another base than it was made for.
            everywhere: Image hosts: let an ungated edit act on negative and empty prompts too, as one does whose parts were made to.

        Yields:
            Hook point -> calls so far, for parts that act on activations.

        Raises:
            InputError: It does not fit, or was made for another base (`force` overrides the latter).
        """
        from .ledger import overlay_of
        from .routing import routed

        if everywhere and self.gate is not None:
            raise InputError(f"edit {self.name} has a gate, which judges prompts alone; everywhere=True is for edits without one")
        overlay = overlay_of(host)
        entry = overlay.add(host, self, force=force, everywhere=everywhere)
        try:
            if self.gate is None:
                yield entry.fired
            else:
                with routed(host, overlay):
                    yield entry.fired
        finally:
            overlay.remove(host, self.digest)

    def apply_(self, host: "Host", *, force: bool = False) -> dict[str, float]:
        """Folds the edit into the host's weights until `undo_`.

        Returns:
            Parameter -> largest absolute change of an entry by this edit.

        Raises:
            InputError: A gated or hook part, which has no permanent form; or see `applied`.
        """
        from .ledger import overlay_of

        self.require_permanent()
        before = {n: parameter(host.model, n).detach().clone() for p in self.weights for n in p.deltas}
        overlay_of(host).add(host, self, force=force)
        return {n: float((parameter(host.model, n).detach().double() - b.double()).abs().max()) for n, b in before.items()}

    def undo_(self, host: "Host") -> list[str]:
        """Inverse of `apply_`: the base, with any other edits, to the bit. Returns the parameters concerned."""
        from .ledger import overlay_of

        overlay_of(host).remove(host, self.digest)
        return [n for p in self.weights for n in p.deltas]

    def require_permanent(self) -> None:
        """Raises where the edit cannot be folded into weights; names the alternatives."""
        if self.gate is not None:
            raise InputError(
                f"edit {self.name} has a gate, which has no permanent form; fold the edit without it "
                "(fit without --gated), or keep the folder and put it on at run time (--edit, edit.applied)"
            )
        hooks = sorted({p.kind for p in self.parts if not p.permanent})
        if hooks:
            raise InputError(
                f"edit {self.name} has a part of kind {', '.join(hooks)}, which has no permanent form; keep the "
                "folder and put it on at run time (--edit, edit.applied), "
                "or use an eraser that edits weights (`efface methods`, parts)"
            )

    def save(self, folder: str | Path) -> None:
        """Writes the edit folder: `edit.json`, `part-N/*.safetensors`, `gate/`, `README.md`."""
        from .edit_folder import save_edit

        save_edit(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "Edit":
        """Reads an edit folder; every file is checked against the manifest's digests.

        Raises:
            ArtefactError: Missing, altered, truncated, of another format, or a path that leads out of the folder.
        """
        from .edit_folder import load_edit

        return load_edit(Path(folder))


def _concept_row(concept: "Concept | Mapping[str, str]") -> dict[str, str]:
    if isinstance(concept, Mapping):
        return {"name": str(concept["name"]), "digest": str(concept["digest"])}
    return {"name": concept.name, "digest": concept.digest}


def _jsonable(value: Any) -> Any:
    """Dataclasses as mappings, tuples as lists, so that what is saved equals what is loaded."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value
