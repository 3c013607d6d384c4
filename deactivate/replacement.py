"""Anchor replacement: where features of a concept are active in a prompt, other words are read in their place."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..base.errors import InputError
from .layer import DeactivationPart
from .parts import Part, Portability
from .routing import unedited

if TYPE_CHECKING:
    from .hosts import Host


WORD = re.compile(r"\w+(?:[-'’]\w+)*")
"""A word with its hyphens and apostrophes."""
SHARE = 0.1
"""Chosen on `validation` of eight concepts of the miniature (benchmarks/itd_share.yaml)."""


@dataclass(frozen=True, eq=False)
class ReplacementPart(Part):
    """Image hosts: the prompt is read with `anchor` in the place of the words that carry the features.

    From left to right: the first word of which a token has at least `share` of the prompt's largest sum of activations gives way, and the
    prompt is read again, since in a causal encoder the words behind it had some of its features too. Words next to an anchor that still
    carry them go without one of their own, and so do words that the anchor would double («style» behind «twemoji style»). Where the whole prompt (its EOS) still has more than that share, and more than the anchor
    alone, other words of a description carry the concept together: they go too, one after the other.
    Where no word has an active feature (only EOS), `anchor` alone is read. Detecting with an SAE and replacing the input, instead of
    editing its latents, keeps the stream on the encoder's own manifold.

    Raises:
        InputError: A token of the anchor cannot be told from nothing.
    """

    layer: DeactivationPart
    """Which features of which SAE."""
    anchor: str
    """What is read instead; "" leaves the words out."""
    share: float = SHARE
    """Of the largest sum of activations over a prompt's words; 0: any activation counts."""
    portability: Portability = "same-shapes"
    kind: ClassVar[str] = "tokens"
    _anchors: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """Those of its layer."""
        return self.layer.tensors()

    def settings(self) -> dict[str, Any]:
        """Anchor and layer."""
        return {"anchor": self.anchor, "share": self.share, "layer": self.layer.settings()}

    @classmethod
    def build(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> "ReplacementPart":
        """From its folder."""
        return cls(DeactivationPart.build(settings["layer"], tensors, folder), settings["anchor"], settings.get("share", 0.0))

    def save(self, folder: Path) -> None:
        """Its layer's tensors and SAE."""
        self.layer.save(folder)

    def describe(self) -> dict[str, Any]:
        """Anchor, place, features."""
        return {
            "kind": self.kind,
            "anchor": self.anchor,
            "share": self.share,
            "hook_point": self.layer.hook_point,
            "features": list(self.layer.features),
        }

    def bound(self, host: "Host") -> "ReplacementPart":
        """Itself; raises where the layer does not fit, or the host reads no prompts."""
        if not getattr(host, "selective", False):
            raise InputError("a replacement of words works on image hosts alone; language models have the words in their output too")
        self.layer.bound(host)
        return self

    def substituted(self, host: "Host", prompts: Sequence[str]) -> list[str]:
        """Each prompt as it is read instead; unchanged where no feature is active."""
        begun = self._heard(host, prompts)
        reader: Any = host.reader([self.layer.hook_point])  # type: ignore[union-attr]

        def fits(text: str) -> bool:
            return len(reader.tokenizer(text, verbose=False)["input_ids"]) <= reader.fixed_length

        found = [
            Rewriting(text := " ".join(p.split()), self.anchor, self.share * max(h.words), fits, h if text == p else None)
            if any(h.words)
            else None
            for p, h in zip(prompts, begun, strict=True)
        ]
        under_way = [r for r in found if r]
        self._until(host, under_way, Rewriting.replace_next)
        itself = self._of_anchor(host) if under_way else 0.0
        for rewriting, heard in zip(found, begun, strict=True):
            if rewriting:
                rewriting.limit = max(self.share * heard.rest, itself)
        self._until(host, under_way, Rewriting.drop_next)
        others = [self.anchor if h.rest else p for p, h in zip(prompts, begun, strict=True)]
        return [r.text if r else other for r, other in zip(found, others, strict=True)]

    def _until(self, host: "Host", rewritings: "Sequence[Rewriting]", step: "Callable[[Rewriting, Heard], bool]") -> None:
        """Steps of each, every one on the prompt as it reads by then, until none has one left."""
        while rewritings:
            changed = [r for r in rewritings if r.heard is None]
            for rewriting, heard in zip(changed, self._heard(host, [r.text for r in changed]), strict=True):
                rewriting.heard = heard
            rewritings = [r for r in rewritings if r.heard and step(r, r.heard)]

    def _of_anchor(self, host: "Host") -> float:
        """What the features say of the anchor alone; read once for each encoder."""
        encoder = host.reader([self.layer.hook_point]).digest  # type: ignore[union-attr]
        if encoder not in self._anchors:
            self._anchors[encoder] = self._heard(host, [self.anchor])[0].rest
        return self._anchors[encoder]

    @torch.no_grad()
    def _heard(self, host: "Host", prompts: Sequence[str]) -> "list[Heard]":
        if not prompts:
            return []
        reader: Any = host.reader([self.layer.hook_point])  # type: ignore[union-attr]
        rows = reader.token_ids(prompts)
        ids, mask = reader.pad(rows, trim=True)
        with unedited(host):
            acts = self.layer.acts(reader.activations(ids, mask, [self.layer.hook_point])[self.layer.hook_point])
        strength, own = acts.abs().sum(-1).cpu(), reader.keep_mask(ids, mask)
        out = []
        for prompt, row, some, keep in zip(prompts, rows, strength, own, strict=True):
            words = words_of(reader.tokenizer, prompt, row)
            each = some.where(keep, 0.0).tolist()
            out.append(Heard(words, [max(each[i] for i in w.tokens) for w in words], max(some[1 : len(row)].tolist(), default=0.0)))
        return out


@dataclass(frozen=True)
class Heard:
    """What the features say of a prompt."""

    spans: "Sequence[Word]"
    words: Sequence[float]
    """Largest sum of activations over a word's tokens, word by word."""
    rest: float
    """The same over all tokens but the first, the last one (EOS) among them."""


@dataclass(eq=False)
class Rewriting:
    """A prompt under way: from left to right, each word that carries the features gives way, and the rest is read again.

    In a causal encoder a word has features of those before it, so that what stands behind a replaced word may carry nothing of its own.
    """

    text: str
    anchor: str
    limit: float
    """Sum of activations from which a word, or in the end the prompt, carries the concept."""
    fits: Callable[[str], bool] = field(default=lambda text: True)
    """Whether the encoder takes a text of this length. Where it does not, a word goes without an anchor in its place."""
    heard: Heard | None = None
    """What the features say of the text; None where it has not been read since it changed."""
    placed: list[tuple[int, int]] = field(default_factory=list)
    """Where the anchor stands in the text."""

    def replace_next(self, heard: Heard) -> bool:
        """The first word behind the last anchor that carries the features gives way to the anchor.

        It goes without one where an anchor stands just before it, or where the prompt would become too long.
        """
        settled = self.placed[-1][1] if self.placed else 0
        for word, much in zip(heard.spans, heard.words, strict=True):
            if word.start >= settled and much > 0 and much >= self.limit:
                beside = bool(self.placed) and not self.text[settled : word.start].strip()
                start = settled if beside else word.start
                goes = beside or not self.fits(self.text[:start] + self.anchor + self.text[word.end :])
                self._put(start, word.end, "" if goes else self.anchor)
                if not goes:
                    self.placed.append((start, start + len(self.anchor)))
                self._say_once()
                return True
        return False

    def drop_next(self, heard: Heard) -> bool:
        """While the whole prompt still carries the features, the word goes that stands nearest before the first anchor, or else the last one."""
        if heard.rest <= self.limit or not self.placed:
            return False
        free = [w for w in heard.spans if not any(a <= w.start < b for a, b in self.placed)]
        before = [w for w in free if w.end <= self.placed[0][0]]
        if not free:
            return False
        gone = before[-1] if before else free[-1]
        self._put(gone.start, gone.end, "")
        self._say_once()
        return True

    def _say_once(self) -> None:
        """Words of the prompt beside an anchor that it ends or begins with go: «twemoji style» in the place of «noto» of «noto style»."""
        own = [w.casefold() for w in WORD.findall(self.anchor)]
        at = 0
        while at < len(self.placed):
            start, end = self.placed[at]
            after = _run(WORD.finditer(self.text, end), self.text, end)
            before = _run(reversed([*WORD.finditer(self.text[:start])]), self.text, start)
            n = next((n for n in range(len(own), 0, -1) if own[-n:] == [w.group().casefold() for w in after[:n]]), 0)
            if n:
                self._put(end, after[n - 1].end(), "")
            n = next((n for n in range(len(own), 0, -1) if own[:n] == [w.group().casefold() for w in reversed(before[:n])]), 0)
            if n:
                self._put(before[n - 1].start(), start, "")
            at += 1

    def _put(self, start: int, end: int, what: str) -> None:
        """Text in the place of a span; white space becomes single, and places move along."""
        head, tail = self.text[:start] + what, self.text[end:]
        if not what:
            tail = tail.lstrip() if head[-1:].isspace() or not head else tail
            head = head if tail else head.rstrip()
        moved = len(head) + len(tail) - len(self.text)
        self.text, self.heard = head + tail, None
        kept = [(a, b) for a, b in self.placed if not start <= a < b <= end]
        self.placed = [(a, b) if b <= start else (a + moved, b + moved) for a, b in kept]


@dataclass(frozen=True)
class Word:
    """A word of a prompt: `prompt[start:end]`, and which of the prompt's tokens are its pieces."""

    start: int
    end: int
    tokens: tuple[int, ...]


def _run(found: Iterable[re.Match[str]], text: str, at: int) -> list[re.Match[str]]:
    """The words next to a place of a text, nearest first, as far as nothing but white space parts them."""
    run = []
    for word in found:
        between = text[at : word.start()] if word.start() >= at else text[word.end() : at]
        if between.strip():
            break
        run.append(word)
        at = word.end() if word.start() >= at else word.start()
    return run


def words_of(tokenizer: Any, prompt: str, row: Sequence[int]) -> list[Word]:
    """The words of a prompt, without special tokens.

    Raises:
        InputError: The tokenizer cannot say where its tokens lie in the text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("form=replace needs a fast tokenizer, which knows where its tokens lie in the prompt")
    read = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    if list(read["input_ids"]) != list(row):
        raise InputError(f"form=replace: the tokenizer reads {prompt!r} in two ways")
    spans = read["offset_mapping"]
    found = []
    for match in WORD.finditer(prompt):
        tokens = tuple(i for i, (start, end) in enumerate(spans) if start < match.end() and end > match.start())
        if tokens:
            found.append(Word(match.start(), match.end(), tokens))
    return found


__all__ = ["ReplacementPart"]
