"""Activations of a host that reads texts, streamed: texts -> tokens -> hidden states -> mask -> mixing buffer.

Memory does not depend on the number of tokens.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ...base.errors import InputError, MatchedNothing
from ...base.running import meter
from ..corpora import read_corpus
from .base import Batch, Plain, SourceState, check_same
from .buffer import MixingBuffer

GROUP = 256
"""Documents tokenised and sorted by length at a time."""
HELD_OUT_SHARE = 20
"""One document of so many is held out (chosen by its text, so copies fall on one side)."""
FILLING = {"all": "first activations", "train": "first activations", "held_out": "held-out activations"}
"""Side -> what is read before the first batch can be drawn."""
Texts = str | Path | Sequence[str] | Callable[[], Iterable[str]]
Part = Literal["all", "train", "held_out"]


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    bos_token_id: int | None
    pad_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str | list[str], *, add_special_tokens: bool = ..., verbose: bool = ...) -> Mapping:
        """Token ids under `input_ids`."""
        ...


@runtime_checkable
class Harvestable(Protocol):
    """What a source needs of a host."""

    @property
    def tokenizer(self) -> Any:
        """The host's tokenizer; see `Tokenizer` (transformers' own classes set these attributes dynamically, so no checker sees them)."""
        ...

    def activations(self, input_ids: Tensor, attention_mask: Tensor, hook_points: Sequence[str]) -> dict[str, Tensor]:
        """`[b, t, d]` a hook point."""
        ...

    def keep_mask(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`[b, t]`: tokens that count."""
        ...


class Covers(Harvestable, Protocol):
    """A part that can be read at other positions."""

    def covering(self, positions: Any) -> Harvestable:
        """The same, read there."""
        ...


@runtime_checkable
class HasReaders(Protocol):
    """A host of several parts that read texts, each with its own tokens."""

    def reader(self, hook_points: Sequence[str]) -> "Covers":
        """The part that the hook points belong to."""
        ...

    def resolve(self, hook_point: str) -> Any:
        """Where a hook point lies."""
        ...


class HostSource:
    """Shuffled activations `{hook point: [batch, d]}` of a host that reads texts, all from one forward pass.

    Documents are cut into windows of `context` tokens (each with the BOS token where the tokenizer adds one), windows
    of like length share a forward pass, padding and special tokens are dropped. A position is (pass, document, forward
    pass), so a resumed source reads on where the checkpoint was written and hands out the same batches.

    Args:
        host: The model; see `Harvestable`.
        texts: A corpus as `read_corpus` takes it, a list of texts, or a function that returns an iterable of texts
            (called once a pass).
        hook_points: Where to read; the order is kept (for a transcoder: input first, then output).
        batch: Vectors a batch.
        context: Most tokens of a window.
        seed: Of the order of forward passes and of the draws from the buffer.
        buffer: Vectors in the mixing buffer.
        forward_tokens: Most tokens (padding included) in one forward pass.
        part: `train` and `held_out` share the documents of a corpus out between them, whole documents, without overlap;
            `all` takes both.
        shard: `(rank, world)`: every world-th group of documents, for data-parallel training.

    Raises:
        InputError: No hook points, a number out of range.
    """

    def __init__(
        self,
        host: Harvestable,
        texts: Texts,
        hook_points: Sequence[str],
        *,
        batch: int = 2048,
        context: int = 128,
        seed: int = 0,
        buffer: int = 2**16,
        forward_tokens: int = 4096,
        part: Part = "all",
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        if isinstance(hook_points, str) or not hook_points or len(set(hook_points)) != len(hook_points):
            raise InputError(f"hook_points must be a list of different names; found {hook_points!r}")
        self.fixed_length: int | None = getattr(host, "fixed_length", None)
        context = self.fixed_length or context
        forward_tokens = max(forward_tokens, self.fixed_length or 0)
        if context < 2 or forward_tokens < context:
            raise InputError(f"context must be at least 2 and forward_tokens at least context; found {context} and {forward_tokens}")
        if not 0 <= shard[0] < shard[1]:
            raise InputError(f"shard must be (rank, world) with 0 <= rank < world; found {shard}")
        self.host, self.texts, self.hook_points = host, texts, list(hook_points)
        self.batch, self.context, self.seed, self.forward_tokens = batch, context, seed, forward_tokens
        self.part: Part = part
        self.shard = shard
        self.buffer = MixingBuffer(max(buffer, batch), batch, seed)
        self.epoch = self.documents = self.forwards = 0
        self._windows: list[list[list[int]]] = []  # the forward passes of the group at hand
        self.bos = _bos(host.tokenizer)

    @property
    def token_policy(self) -> Plain:
        """How texts become vectors: written into the SAE."""
        if self.fixed_length is not None:
            return dict(getattr(self.host, "token_policy"))  # noqa: B009  # hosts of prompts have one, others need not
        kept = {"padding": "dropped", "special_tokens": "dropped"}
        sink = {"first_token": "dropped"} if getattr(self.host, "sink_is_text", False) else {}
        return {"context": self.context, "bos": self.bos is not None, **kept, **sink}

    @property
    def about(self) -> Plain:
        """The host's name and digest, where it has them: written into the SAE."""
        named = {"model": getattr(self.host, "name", None), "model_digest": getattr(self.host, "digest", None)}
        return {k: v for k, v in named.items() if v is not None}

    def __iter__(self) -> Iterator[Batch]:
        """Batches to the end of the pass; the last one may be smaller."""
        seen = self.buffer.size > 0
        yield from self.buffer.drain(self.buffer.capacity)  # what a resumed source still held above its mark
        filling = meter(self.buffer.capacity, desc=FILLING[self.part], unit="vector", enabled=self.shard[0] == 0)
        for acts in self._forward_passes():
            seen = True
            self.buffer.add(acts)
            filling.update(min(self.buffer.size, filling.total) - filling.n)
            if self.buffer.size >= self.buffer.capacity:
                filling.close()
            yield from self.buffer.drain(self.buffer.capacity)
        filling.close()
        yield from self.buffer.drain(1)
        if not seen and self.documents == 0:
            raise MatchedNothing(f"the texts gave no token to read (part {self.part!r}, shard {self.shard}); check the corpus")
        self.epoch, self.documents, self.forwards = self.epoch + 1, 0, 0

    def _forward_passes(self) -> Iterator[Batch]:
        """Kept activations of each forward pass from the current position on.

        The position moves before a pass is handed out.
        """
        documents = iter(self._documents())
        for _ in islice(documents, self.documents):
            pass
        while group := list(islice(documents, GROUP)):
            number = self.documents // GROUP
            if number % self.shard[1] == self.shard[0]:
                planned = self._plan(group, number)
                while self.forwards < len(planned):
                    self.forwards += 1
                    acts = self._harvest(planned[self.forwards - 1])
                    if len(next(iter(acts.values()))):
                        yield acts
            self.documents, self.forwards = self.documents + len(group), 0

    def _documents(self) -> Iterator[str]:
        return documents(self.texts, self.part, prompts=self.fixed_length is not None)

    def _plan(self, group: list[str], number: int) -> list[list[list[int]]]:
        """The group's windows, dealt to forward passes by length; the passes in random order."""
        planned: list[list[list[int]]] = []
        for w in sorted(self._windows_of(group), key=len):
            if not planned or (len(planned[-1]) + 1) * (self.fixed_length or len(w)) > self.forward_tokens:
                planned.append([])
            planned[-1].append(w)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{self.epoch}/{number}".encode()))
        return [planned[i] for i in torch.randperm(len(planned), generator=generator).tolist()]

    def _windows_of(self, group: list[str]) -> list[list[int]]:
        """Token ids of prompts, or of texts cut into windows."""
        if self.fixed_length is not None:
            return self.host.token_ids(group)  # pyright: ignore[reportAttributeAccessIssue]  # hosts of prompts have it
        head = [] if self.bos is None else [self.bos]
        step = self.context - len(head)
        rows = self.host.tokenizer(group, add_special_tokens=False, verbose=False)["input_ids"]
        return [head + ids[i : i + step] for ids in rows for i in range(0, len(ids), step)]

    def _harvest(self, windows: list[list[int]]) -> Batch:
        width = self.fixed_length or max(map(len, windows))
        tokenizer = self.host.tokenizer
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        ids = torch.tensor([w + [pad] * (width - len(w)) for w in windows])
        mask = torch.tensor([[1] * len(w) + [0] * (width - len(w)) for w in windows])
        with torch.no_grad():
            acts = self.host.activations(ids, mask, self.hook_points)
            keep = self.host.keep_mask(ids, mask)
            if keep.all():
                return {p: acts[p].flatten(0, 1) for p in self.hook_points}
            return {p: acts[p][keep.to(acts[p].device)] for p in self.hook_points}

    def _settings(self) -> Plain:
        names = ("context", "seed", "batch", "forward_tokens", "part", "hook_points")
        corpus = str(self.texts) if isinstance(self.texts, str | Path) else None
        return {
            **{n: getattr(self, n) for n in names},
            "corpus": corpus,
            "shard": list(self.shard),
            "buffer": self.buffer.capacity,
        }

    def state(self) -> SourceState:
        """Position in the texts, and the buffered activations."""
        values: Plain = {
            "epoch": self.epoch,
            "documents": self.documents,
            "forwards": self.forwards,
            "settings": self._settings(),
        }
        return SourceState(self.buffer.state().nested("buffer").tensors, values)

    def restore(self, state: SourceState) -> None:
        """Goes on behind the last batch handed out.

        Raises:
            InputError: The state belongs to a source with other settings.
        """
        values = state.values
        check_same("activation source", cast(Plain, values["settings"]), self._settings())
        self.epoch, self.documents, self.forwards = (int(str(values[k])) for k in ("epoch", "documents", "forwards"))
        self.buffer.restore(state.inner("buffer", {}))


def documents(texts: Texts, part: Part, *, prompts: bool = False) -> Iterator[str]:
    """The texts of a part, or with `prompts` their lines that are not empty; copies of a text fall on one side."""
    stream = read_corpus(texts) if isinstance(texts, str | Path) else texts() if callable(texts) else texts
    lines = (line.strip() for text in stream for line in text.splitlines() if line.strip())
    for text in lines if prompts else stream:
        held_out = zlib.crc32(text.encode()) % HELD_OUT_SHARE == 0
        if part == "all" or held_out == (part == "held_out"):
            yield text


def _bos(tokenizer: Tokenizer) -> int | None:
    """The BOS token, where the tokenizer puts it before a text by itself."""
    ids = list(tokenizer("a")["input_ids"])
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else None
