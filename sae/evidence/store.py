"""Reads a feature store: a feature in milliseconds, ranked and searched lists, from any number of threads."""

import json
import sqlite3
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ...base.errors import ArtefactError, InputError, UnknownName
from ...base.files import read_json, sha256_file
from . import schema as s
from .schema import Feature, FeatureRow, StoredContext
from .tallies import bin_edges

KINDS = ("top", "quantile", "validation", "test")
CACHED_BLOCKS = 32
"""Row groups kept in memory a store."""
CACHED_SEARCHES = 16
"""Searches whose matches are kept, at most a megabyte each for a hundred thousand features."""


class FeatureStore:
    """What `write_store` wrote, read-only. Open it with `FeatureStore.open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.d_sae = int(manifest["d_sae"])
        self._local = threading.local()
        self._lock = threading.Lock()
        self._files = {name: parquet.ParquetFile(folder / name, memory_map=True) for name in (s.CONTEXTS, s.DETAILS)}
        self._pieces: list[str] = parquet.read_table(folder / s.VOCABULARY)["piece"].to_pylist()
        self._edges: list[float] = bin_edges().tolist()
        self._block = lru_cache(CACHED_BLOCKS)(self._read_block)
        self.matches = lru_cache(CACHED_SEARCHES)(self._matches)
        """What a text matches, found once and not again for every page of rows."""

    @classmethod
    def open(cls, folder: str | Path, *, sae_digest: str | None = None, verify: bool = True) -> "FeatureStore":
        """The store in `folder`, checked: format, names, sizes and (`verify`) digests of its files, and the SAE it is of.

        A store inside an SAE's folder is compared with the weights beside it.

        Args:
            folder: As written.
            sae_digest: What the SAE at hand has (`deactivate.layer.sae_digest`); None: not compared.
            verify: Read every file once to compare its sha256.

        Raises:
            ArtefactError: Missing, damaged, of another format or of another SAE.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        for name in s.FILES:
            _check_file(folder / name, manifest["files"].get(name), verify)
        _check_sae(folder, manifest, sae_digest)
        try:
            return cls(folder, manifest)
        except (pa.ArrowException, OSError, KeyError) as e:
            raise ArtefactError(f"{folder}: a parquet file cannot be read ({e}); collect the evidence again") from None

    def row(self, feature: int) -> FeatureRow:
        """A feature's figures."""
        return self._rows("SELECT * FROM features WHERE id = ?", self._known(feature))[0]

    def feature(self, feature: int) -> Feature:
        """Everything about a feature.

        Raises:
            UnknownName: No such feature.
        """
        row, d = self.row(feature), self._stored(s.DETAILS, feature)
        bins = range(d["first_bin"], d["first_bin"] + len(d["counts"]))
        return Feature(
            **vars(row),
            histogram=tuple((self._edges[b], self._edges[b + 1], n) for b, n in zip(bins, d["counts"], strict=True)),
            promoted=self._spelled(d["promoted"]),
            suppressed=self._spelled(d["suppressed"]),
            firing=tuple((self._pieces[t["id"]], t["share"], t["log_odds"]) for t in d["firing"]),
            neighbours=tuple((t["id"], t["cosine"]) for t in d["neighbours"]),
            contexts=tuple(self.contexts(feature)),
        )

    def contexts(self, feature: int, kind: str | None = None) -> list[StoredContext]:
        """A feature's contexts, of one kind or of all (`KINDS`); the strongest first within a kind.

        Raises:
            UnknownName: No such feature or kind.
        """
        if kind is not None and kind not in KINDS:
            raise UnknownName("kind of context", kind, KINDS)
        rows = self._stored(s.CONTEXTS, self._known(feature))["contexts"]
        return [self._context(r) for r in rows if kind in (None, r["kind"])]

    def ranked(self, column: str, *, descending: bool = True, limit: int = 50, offset: int = 0) -> list[FeatureRow]:
        """Features in the order of a column, by id where it is equal; those without a value come last.

        Raises:
            UnknownName: No such column.
            InputError: A negative limit or offset.
        """
        if column not in s.RANKED:
            raise UnknownName("column", column, s.RANKED)
        _check_page(limit, offset)
        way = "DESC" if descending else "ASC"
        query = f'SELECT * FROM features ORDER BY "{column}" {way} NULLS LAST, id {way} LIMIT ? OFFSET ?'
        return self._rows(query, limit, offset)

    def search(self, text: str, *, limit: int = 50, offset: int = 0) -> list[FeatureRow]:
        """Features with `text` in their label, or with a promoted or firing token that begins with it; case is ignored.

        Those whose label has it come first, then by the token's rank.

        Raises:
            InputError: An empty text, a negative limit or offset.
        """
        wanted = text.strip().casefold()
        if not wanted:
            raise InputError("search: the text is empty; give a word of a label or the beginning of a token")
        _check_page(limit, offset)
        query = """
            SELECT features.* FROM json_each(?) AS found JOIN features ON features.id = json_extract(found.value, '$[0]')
            ORDER BY json_extract(found.value, '$[1]'), features.id LIMIT ? OFFSET ?"""
        return self._rows(query, self.matches(wanted), limit, offset)

    def _matches(self, wanted: str) -> str:
        """[[feature, place], …] as JSON: where a folded text stands in a label (-1), or at the beginning of a token (its rank)."""
        query = """
            SELECT id, MIN(place) AS place FROM (
                SELECT id, -1 AS place FROM features WHERE instr(folded(label), ?) > 0 AND status = 'labelled'
                UNION ALL
                SELECT feature, rank FROM tokens WHERE token >= ? AND token < ?
            ) GROUP BY id"""
        return json.dumps([[r["id"], r["place"]] for r in self.read(query, wanted, wanted, wanted + "\U0010ffff")])

    def _rows(self, query: str, *values: object) -> list[FeatureRow]:
        return [FeatureRow(**row) for row in self.read(query, *values)]

    def read(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Rows of a query to its table (`schema.TABLES`), read-only; `folded` is Python's casefold."""
        try:
            return [dict(r) for r in self._db.execute(query, values)]
        except sqlite3.DatabaseError as e:
            raise ArtefactError(f"{self.folder / s.TABLE} cannot be read ({e}); collect the evidence again") from None

    @property
    def _db(self) -> sqlite3.Connection:
        """This thread's own read-only connection."""
        if not hasattr(self._local, "db"):
            uri = f"{(self.folder / s.TABLE).resolve().as_uri()}?mode=ro&immutable=1"
            db = sqlite3.connect(uri, uri=True)
            db.row_factory = sqlite3.Row
            db.create_function("folded", 1, lambda t: str(t).casefold(), deterministic=True)
            self._local.db = db
        return self._local.db

    def _known(self, feature: int) -> int:
        if not 0 <= feature < self.d_sae:
            raise UnknownName("feature", str(feature), [], f"This SAE has features 0 to {self.d_sae - 1}")
        return feature

    def _stored(self, name: str, feature: int) -> dict[str, Any]:
        return self._block(name, feature // s.BLOCK).slice(feature % s.BLOCK, 1).to_pylist()[0]

    def _read_block(self, name: str, block: int) -> pa.Table:
        with self._lock:
            try:
                return self._files[name].read_row_group(block)
            except (pa.ArrowException, OSError) as e:
                raise ArtefactError(f"{self.folder / name} cannot be read ({e}); collect the evidence again") from None

    def _spelled(self, tokens: list[int]) -> tuple[str, ...]:
        return tuple(self._pieces[t] for t in tokens)

    def _context(self, row: dict[str, Any]) -> StoredContext:
        tokens = tuple(row["tokens"])
        return StoredContext(**{**row, "tokens": tokens, "activations": tuple(row["activations"])}, pieces=self._spelled(row["tokens"]))


def _manifest(folder: Path) -> dict[str, Any]:
    if not (folder / s.MANIFEST).is_file():
        raise ArtefactError(f"{folder} is not a feature store: it has no {s.MANIFEST}; make one with efface features --all")
    manifest = read_json(folder / s.MANIFEST)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != s.FORMAT:
        raise ArtefactError(f"{folder / s.MANIFEST}: format {found!r}, this version reads {s.FORMAT}; collect the evidence again")
    if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("d_sae"), int):
        raise ArtefactError(f"{folder / s.MANIFEST} lacks files or d_sae; collect the evidence again")
    return manifest


def _check_file(path: Path, stated: Any, verify: bool) -> None:
    if not path.is_file() or not isinstance(stated, dict):
        raise ArtefactError(f"{path} is missing, from the folder or from the manifest; collect the evidence again")
    if path.stat().st_size != stated.get("bytes") or (verify and sha256_file(path) != stated.get("sha256")):
        raise ArtefactError(f"{path} is not the file that {s.MANIFEST} describes; copy the folder again")


def _check_sae(folder: Path, manifest: dict[str, Any], sae_digest: str | None) -> None:
    if sae_digest is not None and manifest.get("sae_digest") != sae_digest:
        raise ArtefactError(f"{folder} was collected with another SAE than the one given; collect the evidence again")
    card = folder.resolve().parent / "efface.json"
    stated = manifest.get("sae_weights")
    if not card.is_file() or stated is None:
        return
    weights = read_json(card).get("weights")
    if isinstance(weights, dict) and weights.get("sha256") != stated:
        raise ArtefactError(f"{folder} was collected with another SAE than the one it lies in; remove it and collect the evidence again")


def _check_page(limit: int, offset: int) -> None:
    if limit < 0 or offset < 0:
        raise InputError(f"limit and offset must not be negative; found {limit} and {offset}")
