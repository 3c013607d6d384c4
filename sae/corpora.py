"""Texts to harvest activations from: files, folders, a `datasets` hub id, or the corpus that ships with the package.

Read as a stream.
"""

import importlib.resources
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ..base.errors import ArtefactError, InputError, MatchedNothing

EMBEDDED = "data/corpus.jsonl.zst"
SUFFIXES = (".txt", ".jsonl", ".jsonl.zst", ".parquet")
BLOCK = 4096
"""Compressed bytes read at a time."""


def read_corpus(spec: str | Path, *, field: str = "text", limit: int | None = None) -> Iterator[str]:
    """The documents of a corpus, in file order, empty ones left out.

    Args:
        spec: `path.txt` (blank lines separate documents), `path.jsonl`, `path.jsonl.zst`, `path.parquet`, a folder of
            those (in the order of their names, subfolders included), `hub:NAME` or `hub:NAME:CONFIG` (split `train`;
            needs `datasets`), or `embedded`.
        field: Column or key that holds the text in JSONL, parquet and hub data.
        limit: At most so many documents.

    Raises:
        InputError: There is no such corpus, it is of another kind, or the field is missing.
        MatchedNothing: The corpus holds no text (raised when it has been read).
        ArtefactError: A line that is not JSON, a damaged parquet or zstandard file.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 document, or None for all; found {limit}")
    name = str(spec)
    if name.startswith("hub:"):
        texts = _hub(name.removeprefix("hub:"), field)
    elif name == "embedded":
        texts = _read_file(embedded_corpus(), field)
    else:
        files = corpus_files(Path(name))
        texts = (text for file in files for text in _read_file(file, field))
    return islice(_nonempty(texts, name), limit)


def corpus_files(path: Path) -> list[Path]:
    """The files a local corpus is made of.

    Raises:
        InputError: The path is missing or of an unknown kind.
        MatchedNothing: A folder without any file of a known kind.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
        if not files:
            raise MatchedNothing(f"corpus {path}: the folder holds no {', '.join(SUFFIXES)} file")
        return files
    if not path.is_file():
        raise InputError(f"corpus {str(path)!r} is no file or folder; give a path, hub:NAME or embedded")
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"corpus {path}: expected a file named *{', *'.join(SUFFIXES)}; convert it to one of those")
    return [path]


def embedded_corpus() -> Path:
    """Where the packaged corpus lies.

    Raises:
        InputError: It is not part of this installation.
    """
    package = f"{__name__.split('.')[0]}.llm.corpus"
    try:
        path = Path(str(importlib.resources.files(package) / EMBEDDED))
    except ModuleNotFoundError:
        raise InputError(f"corpus 'embedded': the package {package} is missing from this installation; reinstall it") from None
    if not path.is_file():
        raise InputError(f"corpus 'embedded': {path} is missing from this installation; reinstall it, or give a file with --corpus")
    return path


def _nonempty(texts: Iterator[str], name: str) -> Iterator[str]:
    found = False
    for text in texts:
        if text.strip():
            found = True
            yield text
    if not found:
        raise MatchedNothing(f"corpus {name}: no document with text in it")


def _read_file(path: Path, field: str) -> Iterator[str]:
    if path.suffix == ".parquet":
        return _parquet(path, field)
    if path.name.endswith(".jsonl.zst"):
        return _jsonl_zst(path, field)
    return _jsonl(path, field) if path.suffix == ".jsonl" else _text(path)


def _text(path: Path) -> Iterator[str]:
    document: list[str] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    document.append(line)
                elif document:
                    yield "".join(document).strip()
                    document = []
    except UnicodeDecodeError as e:
        raise ArtefactError(f"corpus {path} is not UTF-8 text ({e.reason}); convert it") from None
    if document:
        yield "".join(document).strip()


def _jsonl(path: Path, field: str) -> Iterator[str]:
    with path.open("rb") as raw:
        yield from _json_lines(raw, path, field)


def _jsonl_zst(path: Path, field: str) -> Iterator[str]:
    yield from _json_lines(_lines(_unpacked(path)), path, field)


def _unpacked(path: Path) -> Iterator[bytes]:
    """What a zstandard file holds, frame after frame, in pieces of what `BLOCK` bytes of it expand to.

    zstandard's own stream ends quietly where a file is cut off; here an end inside a frame is an error.
    """
    import zstandard

    decoder = zstandard.ZstdDecompressor()
    frame = decoder.decompressobj()
    try:
        with path.open("rb") as raw:
            while data := frame.unused_data or raw.read(BLOCK):
                frame = decoder.decompressobj() if frame.eof else frame
                yield frame.decompress(data)
    except zstandard.ZstdError as e:
        raise ArtefactError(f"corpus {path} is not a whole zstandard file ({e})") from None
    if not frame.eof:
        raise ArtefactError(f"corpus {path} is not a whole zstandard file (it ends inside a frame); copy it again")


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    yield rest


def _json_lines(lines: Iterable[bytes], path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError) as e:
            raise ArtefactError(f"corpus {path}, line {number}: not JSON ({e})") from None
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            found = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise InputError(f"corpus {path}, line {number}: no text under {field!r} (found: {found or 'nothing'}); name the field")
        yield record[field]


def _parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise InputError(f"corpus {path}: no column {field!r} (found: {', '.join(columns)}); name the field")
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                for text in batch.column(0).to_pylist():
                    yield text or ""
    except (pyarrow.ArrowInvalid, OSError) as e:
        raise ArtefactError(f"corpus {path} is not a whole parquet file ({e})") from None


def _hub(name: str, field: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise InputError(f"corpus hub:{name} needs the package datasets: pip install 'efface[hub]'") from None
    path, _, config = name.partition(":")
    try:
        records = datasets.load_dataset(path, config or None, split="train", streaming=True)
    except (OSError, ValueError) as e:
        why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise InputError(f"corpus hub:{name}: {why}; check the name and the network, or give a local file") from None
    for record in records:
        if field not in record:
            raise InputError(f"corpus hub:{name}: no field {field!r} (found: {', '.join(record)}); name the field")
        yield record[field] or ""
