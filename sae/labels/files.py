"""Labels from a file: of one's own, or Neuronpedia's explanations."""

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...base.errors import InputError, MatchedNothing

NUMBERS = ("feature", "index", "id", "feature_index")
"""Names of the column or key that says which feature."""
TEXTS = ("label", "description", "explanation")
"""And of the one that says what it is called."""
KINDS = (".json", ".jsonl", ".jsonl.gz", ".csv", ".tsv")


def read_labels(path: Path, d_sae: int) -> dict[int, str]:
    """Feature -> label. Of several labels of a feature the first one counts; empty ones are left out.

    Args:
        path: `.json` (`{"12": "baseball"}`, or a list of records), `.jsonl`, `.csv` or `.tsv` with a line of names (`feature,label`),
            Neuronpedia's `explanations/batch-0.jsonl.gz` (`index`, `description`), or a folder of such files.
        d_sae: Features there are.

    Raises:
        InputError: It cannot be read, names no such columns or features that there are not, or speaks of several layers.
        MatchedNothing: It holds no label.
    """
    places = sorted(p for p in path.iterdir() if _kind(p)) if path.is_dir() else [path]
    if not places or not path.exists():
        raise InputError(f"--labels {path}: no such file; write words, host, or a file of labels ({', '.join(KINDS)})")
    found: dict[int, str] = {}
    layers: set[str] = set()
    for place in places:
        for record in _records(place):
            number, text = _number(record, place, d_sae), _text(record, place)
            layers |= {str(record["layer"])} if record.get("layer") is not None else set()
            if text:
                found.setdefault(number, text)
    if len(layers) > 1:
        raise InputError(f"--labels {path}: it speaks of {len(layers)} SAEs ({', '.join(sorted(layers)[:3])}, …); keep the lines of one")
    if not found:
        raise MatchedNothing(f"--labels {path}: it holds no label; write a line a feature, such as feature,label")
    return found


def _kind(path: Path) -> str | None:
    return next((k for k in sorted(KINDS, key=len, reverse=True) if path.name.endswith(k)), None)


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    kind = _kind(path)
    if kind is None:
        raise InputError(f"--labels {path}: labels come as {', '.join(KINDS)}; rename it")
    try:
        raw = gzip.decompress(path.read_bytes()) if kind.endswith(".gz") else path.read_bytes()
        yield from _parsed(raw.decode("utf-8"), kind)
    except (OSError, EOFError, ValueError, csv.Error) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"--labels {path} cannot be read as {kind}: {e}") from None


def _parsed(text: str, kind: str) -> Iterable[Mapping[str, Any]]:
    if kind in (".csv", ".tsv"):
        return list(csv.DictReader(text.splitlines(), delimiter="," if kind == ".csv" else "\t"))
    if kind == ".json":
        values = json.loads(text)
        values = [{"feature": k, "label": v} for k, v in values.items()] if isinstance(values, dict) else values
    else:
        values = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
        raise ValueError("an object, or records, expected")
    return values


def _number(record: Mapping[str, Any], path: Path, d_sae: int) -> int:
    key = next((k for k in NUMBERS if k in record), None)
    if key is None:
        raise InputError(f"--labels {path}: no column {' or '.join(NUMBERS)}; found {', '.join(map(str, record)) or 'none'}")
    try:
        number = int(record[key])
    except (TypeError, ValueError):
        raise InputError(f"--labels {path}: {key} must be a whole number; found {record[key]!r}") from None
    if not 0 <= number < d_sae:
        raise InputError(f"--labels {path}: feature {number}, and this SAE has 0 to {d_sae - 1}; is the file of another SAE?")
    return number


def _text(record: Mapping[str, Any], path: Path) -> str:
    key = next((k for k in TEXTS if k in record), None)
    if key is None:
        raise InputError(f"--labels {path}: no column {' or '.join(TEXTS)}; found {', '.join(map(str, record))}")
    if not isinstance(record[key], str | None):
        raise InputError(f"--labels {path}: {key} must be text; found {record[key]!r}")
    return " ".join((record[key] or "").split())
