"""Layout of a feature store: one SQLite table of figures, parquet files with one row a feature, a manifest.

* `manifest.json`: format, SAE, host, corpus, settings, report on the labels, size and sha256 of every other file
* `features.sqlite`: table `features` (one row each, indexed for ranking) and `tokens` (token -> features, to search by)
* `contexts.parquet`: every context of a feature; row i is feature i, in row groups of `BLOCK` features
* `details.parquet`: histogram, promoted, suppressed and firing tokens, neighbours; the same rows and row groups
* `vocabulary.parquet`: the string of every token id
"""

from dataclasses import dataclass

import pyarrow as pa

FORMAT = 2
MANIFEST = "manifest.json"
TABLE, CONTEXTS, DETAILS, VOCABULARY = "features.sqlite", "contexts.parquet", "details.parquet", "vocabulary.parquet"
FILES = (TABLE, CONTEXTS, DETAILS, VOCABULARY)
BLOCK = 64
"""Features a row group: what one look-up reads."""

LABEL_COLUMNS = {
    "label": "TEXT NOT NULL",
    "status": "TEXT NOT NULL",
    "proposal": "TEXT",
    "source": "TEXT",
    "validation": "REAL",
    "auroc": "REAL",
    "auroc_low": "REAL",
    "auroc_high": "REAL",
    "fuzzing": "REAL",
    "fuzzing_low": "REAL",
    "fuzzing_high": "REAL",
}
"""What a labeller fills in; see `deactivate.evaluation.detection.Label`."""
COLUMNS = {
    "id": "INTEGER PRIMARY KEY",
    "fired": "INTEGER NOT NULL",
    "density": "REAL NOT NULL",
    "windows": "INTEGER NOT NULL",
    "max": "REAL NOT NULL",
    "mean": "REAL NOT NULL",
    **LABEL_COLUMNS,
}
RANKED = tuple(name for name in COLUMNS if name not in ("proposal", "source", "status"))
"""Columns that features can be ranked by; each has an index."""
TABLES = (
    f"CREATE TABLE features ({', '.join(f'{n} {kind}' for n, kind in COLUMNS.items())})",
    "CREATE TABLE tokens (token TEXT NOT NULL, feature INTEGER NOT NULL, kind TEXT NOT NULL, rank INTEGER NOT NULL, "
    "PRIMARY KEY (token, feature, kind)) WITHOUT ROWID",
)
INDEXES = tuple(f'CREATE INDEX by_{n} ON features ("{n}", id)' for n in RANKED if n != "id")

_CONTEXT = pa.struct(
    {
        "kind": pa.string(),
        "quantile": pa.int8(),
        "document": pa.int64(),
        "position": pa.int64(),
        "peak": pa.int32(),
        "value": pa.float32(),
        "tokens": pa.list_(pa.int32()),
        "activations": pa.list_(pa.float32()),
    }
)
CONTEXT_SCHEMA = pa.schema({"feature": pa.int32(), "contexts": pa.list_(_CONTEXT)})
DETAIL_SCHEMA = pa.schema(
    {
        "feature": pa.int32(),
        "first_bin": pa.int32(),
        "counts": pa.list_(pa.int64()),
        "promoted": pa.list_(pa.int32()),
        "suppressed": pa.list_(pa.int32()),
        "firing": pa.list_(pa.struct({"id": pa.int32(), "share": pa.float32(), "log_odds": pa.float32()})),
        "neighbours": pa.list_(pa.struct({"id": pa.int32(), "cosine": pa.float32()})),
    }
)
VOCABULARY_SCHEMA = pa.schema({"piece": pa.string()})


@dataclass(frozen=True)
class StoredContext:
    """A context as it is read back."""

    kind: str
    """`top`, `quantile`, `validation` or `test` (held out)."""
    quantile: int | None
    """Of the activation distribution, 0 the weakest; None for other kinds."""
    document: int
    position: int
    """Of the peak, in the document's tokens."""
    peak: int
    """Index of the peak in `tokens`."""
    value: float
    """Activation at the peak."""
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    """The tokens' strings, leading spaces in them."""
    activations: tuple[float, ...]
    """The feature's, a token each."""


@dataclass(frozen=True)
class FeatureRow:
    """A feature's figures: a row of the table."""

    id: int
    fired: int
    """Tokens of the evidence part on which it is active."""
    density: float
    """Share of those tokens."""
    windows: int
    """Windows of text in which it is active."""
    max: float
    mean: float
    """Over the tokens on which it is active; 0 where it never is."""
    label: str
    """`unlabelled` where none stands."""
    status: str
    """Why: `labelled`, `at chance`, `too few contexts`, `no word` or `silent`."""
    proposal: str | None
    """What was proposed, also where it did not stand."""
    source: str | None
    """What the proposal was made from."""
    validation: float | None
    """Its detection AUROC on `validation`, which decided whether it stands."""
    auroc: float | None
    """Its detection AUROC on `test`, with a 95 % interval."""
    auroc_low: float | None
    auroc_high: float | None
    fuzzing: float | None
    """Its fuzzing AUROC on `test` (are the right tokens marked?), with a 95 % interval."""
    fuzzing_low: float | None
    fuzzing_high: float | None


@dataclass(frozen=True)
class Feature(FeatureRow):
    """Everything that is known of a feature."""

    histogram: tuple[tuple[float, float, int], ...]
    """Lower edge, upper edge, count, from the first bin that is not empty to the last."""
    promoted: tuple[str, ...]
    """Logit lens, strongest first."""
    suppressed: tuple[str, ...]
    firing: tuple[tuple[str, float, float], ...]
    """Token, share of the activation, log-odds against the corpus."""
    neighbours: tuple[tuple[int, float], ...]
    """Feature, cosine of the decoder rows."""
    contexts: tuple[StoredContext, ...]
