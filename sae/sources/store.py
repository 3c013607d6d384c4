"""Activations on disk: safetensors shards and a manifest with their digests, read back shuffled and resumable."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ...base.errors import ArtefactError, InputError, MatchedNothing, NumericsError
from ...base.files import inside, load_tensors, new_folder, read_json, reading, save_tensors, sha256_file, write_json
from .base import Batch, Plain, SourceState, check_same
from .buffer import MixingBuffer

FORMAT = 1
MANIFEST = "manifest.json"
SHARD_BYTES = 2**28
"""Of a shard, where its rows are not given."""


class ActivationStore:
    """A folder of activations as a source: shards in random order, mixed through a buffer of two shards.

    Every pass has another order. Memory is about three shards, whatever the size of the store. A shard's digest is
    checked whenever it is read.

    Args:
        folder: What `ActivationStore.write` made.
        batch: Vectors a batch.
        seed: Of the order.

    Raises:
        ArtefactError: The manifest is missing, of another format, names files outside the folder, or a shard is missing
            or was altered.
    """

    def __init__(self, folder: Path | str, batch: int = 2048, seed: int = 0) -> None:
        self.folder, self.batch, self.seed = Path(folder), batch, seed
        self.manifest = _manifest(self.folder)
        self.shards = cast(list[Plain], self.manifest["shards"])
        self.hook_points = list(cast(dict, self.manifest["hook_points"]))
        self.token_policy = cast(Plain, self.manifest["token_policy"])
        self.about = cast(Plain, self.manifest.get("about", {}))
        self.epoch = self.position = 0
        self.buffer = self._new_buffer()

    def __len__(self) -> int:
        """Vectors a pass."""
        return int(str(self.manifest["n"]))

    @staticmethod
    def write(folder: Path | str, source: Iterable[Batch | Tensor], n: int, *, shard: int | None = None) -> Path:
        """Writes the first `n` vectors of a source (fewer where it ends before); the folder appears when it is whole.

        Args:
            folder: Must not exist, or be empty.
            source: Yields `{hook point: [m, d]}`, or `[m, d]` (written as hook point `x`).
            n: Vectors.
            shard: Vectors a file; None: as many as make 256 MB over all hook points. Reading mixes two of them in memory.

        Raises:
            InputError: `folder` exists, `n` or `shard` below 1.
            MatchedNothing: The source gave nothing.
            NumericsError: NaN or infinity in the activations.
        """
        if n < 1 or (shard is not None and shard < 1):
            raise InputError(f"n and shard must be at least 1; found {n} and {shard}")
        entries: list[Plain] = []
        kinds: Plain = {}
        with new_folder(Path(folder)) as work:
            for piece in _pieces(source, n, shard):
                name = f"shard-{len(entries):05d}.safetensors"
                for point, t in piece.items():
                    if not torch.isfinite(t).all():
                        raise NumericsError(f"NaN or infinity in the activations of {point!r}; nothing was written")
                save_tensors(work / name, piece)
                kinds = {p: {"d": t.shape[1], "dtype": str(t.dtype).removeprefix("torch.")} for p, t in piece.items()}
                rows = len(next(iter(piece.values())))
                entries.append({"file": name, "n": rows, "sha256": sha256_file(work / name)})
            if not entries:
                raise MatchedNothing("the source gave no activations to store")
            told = {name: dict(getattr(source, name, {})) for name in ("token_policy", "about")}  # what the source says of host and tokens
            total = sum(int(str(e["n"])) for e in entries)
            head = {"format": FORMAT, "n": total, "hook_points": kinds, **told}
            write_json(work / MANIFEST, {**head, "shards": entries})
        return Path(folder)

    def __iter__(self) -> Iterator[Batch]:
        """Batches to the end of the pass; the last one may be smaller."""
        order = torch.randperm(len(self.shards), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)).tolist()
        yield from self.buffer.drain(self.buffer.capacity)
        while self.position < len(order):
            acts = self._read(order[self.position])
            self.position += 1
            self.buffer.add(acts)
            yield from self.buffer.drain(self.buffer.capacity)
        yield from self.buffer.drain(1)
        self.epoch, self.position = self.epoch + 1, 0

    def state(self) -> SourceState:
        """Pass, shard and the buffered activations."""
        values: Plain = {"epoch": self.epoch, "position": self.position, "settings": self._settings()}
        return SourceState(self.buffer.state().nested("buffer").tensors, values)

    def restore(self, state: SourceState) -> None:
        """Goes on behind the last batch handed out.

        Raises:
            InputError: The state belongs to another store, batch or seed.
        """
        check_same("activation store", cast(Plain, state.values["settings"]), self._settings())
        self.epoch, self.position = int(str(state.values["epoch"])), int(str(state.values["position"]))
        self.buffer.restore(state.inner("buffer", {}))

    def _new_buffer(self) -> MixingBuffer:
        largest = max(int(str(s["n"])) for s in self.shards)
        return MixingBuffer(max(2 * largest, self.batch), self.batch, self.seed)

    def _settings(self) -> Plain:
        return {"batch": self.batch, "seed": self.seed, "shards": [s["sha256"] for s in self.shards]}

    def _read(self, number: int) -> Batch:
        entry = self.shards[number]
        path = inside(self.folder, str(entry["file"]))
        if not path.is_file():
            raise ArtefactError(f"{path} is missing though the manifest names it")
        if sha256_file(path) != entry["sha256"]:
            raise ArtefactError(f"{path} is not what the manifest says (sha256 differs): damaged or altered; write the store again")
        tensors = load_tensors(path)
        shapes = {k: tuple(t.shape) for k, t in tensors.items()}
        if any(len(t) != entry["n"] for t in tensors.values()) or list(tensors) != sorted(self.hook_points):
            raise ArtefactError(f"{path} holds {shapes}; the manifest says {entry['n']} vectors of {self.hook_points}")
        return {p: tensors[p] for p in self.hook_points}


def _manifest(folder: Path) -> Plain:
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ArtefactError(f"{folder / MANIFEST}: format {found!r}; this version reads {FORMAT}")
    with reading(folder / MANIFEST):
        rows = [int(entry["n"]) for entry in manifest["shards"]]
        if sum(rows) != manifest["n"] or min(rows) < 1:
            raise ArtefactError(f"{folder / MANIFEST}: its shards hold {sum(rows)} vectors, and it says {manifest['n']!r}")
        if not dict(manifest["hook_points"]) or dict(manifest["token_policy"]) != manifest["token_policy"]:
            raise ArtefactError(f"{folder / MANIFEST}: hook_points or token_policy is not as it was written")
        for entry in manifest["shards"]:
            inside(folder, str(entry["file"]))
            str(entry["sha256"])
    return manifest


def _pieces(source: Iterable[Batch | Tensor], n: int, shard: int | None) -> Iterator[Batch]:
    """The first `n` vectors, in pieces of `shard`, or of `SHARD_BYTES`."""
    held: list[Batch] = []
    size = total = 0
    for item in source:
        batch: Batch = {"x": item} if isinstance(item, Tensor) else item
        shard = shard or max(1, SHARD_BYTES // sum(t.shape[1] * t.element_size() for t in batch.values()))
        rows = min(len(next(iter(batch.values()))), n - total)
        held.append({p: t[:rows].detach().cpu() for p, t in batch.items()})
        size, total = size + rows, total + rows
        while size >= shard:
            whole = {p: torch.cat([h[p] for h in held]) for p in held[0]}
            yield {p: t[:shard] for p, t in whole.items()}
            held, size = [{p: t[shard:].clone() for p, t in whole.items()}], size - shard
        if total == n:
            break
    if size:
        yield {p: torch.cat([h[p] for h in held]) for p in held[0]}
