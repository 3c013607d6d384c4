"""Writes a feature store: whole or not at all."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from jaxtyping import Int
from pyarrow import parquet
from torch import Tensor

from ... import __version__
from ...base.errors import InputError
from ...base.files import new_folder, sha256_file, write_json
from ...base.running import progress
from . import schema as s
from .firing import firing_tokens
from .held import Context
from .neighbours import nearest_features
from .passages import PARTS
from .reading import Evidence, Reading

if TYPE_CHECKING:
    from ..sae import SAE

Lens = tuple[Int[Tensor, "d_sae k"], Int[Tensor, "d_sae k"]]
"""Promoted and suppressed token ids of every feature (`llm.vocabulary.extreme_tokens`)."""
Row = dict[str, Any]


def write_store(
    out: Path,
    sae: "SAE",
    reading: Reading,
    evidence: Evidence,
    labels: Sequence[Mapping[str, Any]],
    pieces: Sequence[str],
    lens: Lens | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Builds the folder in a temporary sibling and renames it to `out`.

    Args:
        out: Must not exist, or be an empty folder.
        sae: For the neighbours, and for what the manifest says of it.
        reading: The corpus.
        evidence: This SAE's.
        labels: A row of `schema.LABEL_COLUMNS` a feature.
        pieces: The string of every token id.
        lens: Promoted and suppressed tokens; None: the host has no vocabulary to look at.
        about: Further keys of the manifest (`host`, `sae_digest`, `labels`).

    Raises:
        InputError: `out` exists, or there is not one label a feature.
    """
    if len(labels) != evidence.d_sae:
        raise InputError(f"labels: {len(labels)} rows for {evidence.d_sae} features; give one a feature")
    with new_folder(out) as work:
        details = _Writer(work / s.DETAILS, s.DETAIL_SCHEMA)
        contexts = _Writer(work / s.CONTEXTS, s.CONTEXT_SCHEMA)
        with details, contexts, _table(work / s.TABLE) as table:
            neighbours = nearest_features(sae.W_dec, evidence.config.neighbours)
            for first in progress(range(0, evidence.d_sae, s.BLOCK), desc="evidence written", unit="block"):
                ids = range(first, min(first + s.BLOCK, evidence.d_sae))
                rows = [_details(evidence, reading, i, lens, neighbours) for i in ids]
                details.write(rows)
                contexts.write([{"feature": i, "contexts": _contexts(evidence, i)} for i in ids])
                table.executemany(_insert("features", s.COLUMNS), [_figures(evidence, reading, i, labels[i]) for i in ids])
                table.executemany("INSERT OR IGNORE INTO tokens VALUES (?, ?, ?, ?)", [t for r in rows for t in _searched(r, pieces)])
            for index in s.INDEXES:
                table.execute(index)
        vocabulary = _Writer(work / s.VOCABULARY, s.VOCABULARY_SCHEMA)
        with vocabulary:
            vocabulary.write([{"piece": p} for p in pieces])
        files = {name: {"bytes": (work / name).stat().st_size, "sha256": sha256_file(work / name)} for name in s.FILES}
        write_json(work / s.MANIFEST, {**_manifest(sae, reading, evidence), **(about or {}), "files": files})
    return out


def _manifest(sae: "SAE", reading: Reading, evidence: Evidence) -> Row:
    weights = sae.card.get("weights")
    return {
        "format": s.FORMAT,
        "efface": __version__,
        "hook_point": sae.card.get("hook_point"),
        "d_sae": evidence.d_sae,
        "sae_weights": weights.get("sha256") if isinstance(weights, dict) else None,
        "corpus": {
            "documents": reading.documents,
            "tokens": dict(zip(PARTS, reading.tokens.tolist(), strict=True)),
            "digest": reading.digest,
        },
        "token_policy": reading.token_policy,
        "config": asdict(evidence.config),
    }


def _figures(evidence: Evidence, reading: Reading, i: int, label: Mapping[str, Any]) -> Row:
    t, n = evidence.tallies, int(reading.tokens[0])
    fired = int(t.fired[i])
    return {
        "id": i,
        "fired": fired,
        "density": fired / n,
        "windows": int(t.windows[i]),
        "max": float(t.max[i]),
        "mean": float(t.total[i]) / max(fired, 1),
        **{name: label[name] for name in s.LABEL_COLUMNS},
    }


def _details(evidence: Evidence, reading: Reading, i: int, lens: Lens | None, neighbours: tuple[Tensor, Tensor]) -> Row:
    counts = evidence.tallies.histogram[i]
    filled = counts.nonzero()[:, 0].tolist()
    first, end = (filled[0], filled[-1] + 1) if filled else (0, 0)
    promoted, suppressed = ([], []) if lens is None else (side[i].tolist() for side in lens)
    near = zip(neighbours[0][i].tolist(), neighbours[1][i].tolist(), strict=True)
    return {
        "feature": i,
        "first_bin": first,
        "counts": counts[first:end].tolist(),
        "promoted": promoted,
        "suppressed": suppressed,
        "firing": [vars(t) for t in firing_tokens(evidence, reading, i, evidence.config.tokens)],
        "neighbours": [{"id": j, "cosine": c} for j, c in near],
    }


def _contexts(evidence: Evidence, i: int) -> list[Row]:
    def row(kind: str, c: Context, quantile: int | None = None) -> Row:
        return {"kind": kind, "quantile": quantile, **vars(c)}

    shown = [row("top", c) for c in evidence.top.contexts(i)]
    drawn = [row("quantile", c, q) for q, c in evidence.quantiles(i)]
    return shown + drawn + [row(part, c) for part, held in evidence.held.items() for c in held.contexts(i)]


def _searched(row: Row, pieces: Sequence[str]) -> Iterator[tuple[str, int, str, int]]:
    """What a feature is found by: its promoted and firing tokens, without spaces, in lower case."""
    ids: dict[str, list[int]] = {"promoted": row["promoted"], "firing": [t["id"] for t in row["firing"]]}
    for kind, tokens in ids.items():
        for rank, token in enumerate(tokens):
            text = pieces[token].strip().casefold()
            if text:
                yield text, row["feature"], kind, rank


def _insert(table: str, columns: Mapping[str, str]) -> str:
    return f"INSERT INTO {table} VALUES ({', '.join(f':{n}' for n in columns)})"


class _Writer:
    """A parquet file to which each call adds one row group."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._file = parquet.ParquetWriter(path, schema, compression="zstd")

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, rows: list[Row]) -> None:
        self._file.write_table(pa.Table.from_pylist(rows, schema=self._schema), row_group_size=max(len(rows), 1))


class _table:
    """A new SQLite file with the tables, committed at the end of the block."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path)

    def __enter__(self) -> sqlite3.Connection:
        for statement in s.TABLES:
            self._db.execute(statement)
        return self._db

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._db.commit()
        self._db.close()
