"""Files that are whole or not there: atomic writes, digests, safe names, and a safetensors reader that checks what it reads."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .blocks import finite as all_finite
from .blocks import safetensors_file
from .errors import ArtefactError, InputError

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


def cache_dir() -> Path:
    """Where downloads and converted models live: `EFFACE_CACHE`, else `~/.cache/efface`."""
    return Path(os.environ.get("EFFACE_CACHE") or Path.home() / ".cache" / "efface")


def slug(name: str) -> str:
    """A file name for any text: its ASCII letters and digits, plus eight digits of its sha256."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "x"
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def sha256_bytes(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces, no NaN. What digests of settings are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of `value`."""
    return sha256_bytes(canonical_json(value).encode())


def write_bytes(path: Path, data: bytes) -> None:
    """`write_pieces` of one."""
    write_pieces(path, [data])


def write_pieces(path: Path, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
    """Writes beside `path`, flushes to disk and renames: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as f:
            for piece in pieces:
                f.write(piece)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as e:
        Path(name).unlink(missing_ok=True)
        if isinstance(e, OSError) and e.filename is None:  # a failed write does not say of which file
            e.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, atomically. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Parsed JSON.

    Raises:
        ArtefactError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ArtefactError(f"{path} is not valid JSON ({e})") from None


@contextmanager
def reading(manifest: Path) -> Iterator[None]:
    """Block that picks values out of a parsed manifest.

    Raises:
        ArtefactError: Something is missing in it, or is of a kind that cannot be used.
    """
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as e:
        raise ArtefactError(f"{manifest}: incomplete or of another make ({type(e).__name__}: {first_line(e)})") from None


def first_line(error: BaseException) -> str:
    """What an error says, without the rest where it goes on for lines."""
    return next(iter(str(error).strip().splitlines()), "")


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears whole: yields a temporary sibling, renamed to `path` when the block ends without an error.

    With an error nothing changes: what lay at `path` before lies there again.

    Raises:
        InputError: `path` exists and is not empty, and `overwrite` is off.
    """
    if path.exists() and not overwrite and (path.is_file() or any(path.iterdir())):
        raise InputError(f"output {path} exists already; choose another --out or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    os.chmod(work, 0o755)
    try:
        yield work
        if path.exists():
            _swap(path, work)
        else:
            os.replace(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _swap(path: Path, work: Path) -> None:
    """Puts `work` in the place of `path`, or leaves `path` as it was."""
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        os.replace(path, old / "old")
        try:
            os.replace(work, path)
        except BaseException:
            os.replace(old / "old", path)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def inside(folder: Path, name: str) -> Path:
    """`folder / name` for a name read from a manifest.

    Raises:
        ArtefactError: The name is absolute or leads out of the folder.
    """
    target = (folder / name).resolve()
    if Path(name).is_absolute() or not target.is_relative_to(folder.resolve()):
        raise ArtefactError(f"{folder}: the manifest names {name!r}, which lies outside the folder")
    return target


def altered_files(manifest: Path) -> list[str]:
    """Files that a manifest names under `files`, by sha256 or by a mapping with one, and that are missing or have another.

    Raises:
        ArtefactError: There is no such manifest, or it is of another make, or names a file outside its folder.
    """
    with reading(manifest):
        named = {n: str(v["sha256"] if isinstance(v, Mapping) else v) for n, v in read_json(manifest)["files"].items()}
        paths = {n: inside(manifest.parent, n) for n in named}
    return [n for n, sha in named.items() if not paths[n].is_file() or sha256_file(paths[n]) != sha]


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file atomically, tensors made contiguous: block by block, so that no second copy of them is held."""
    write_pieces(path, safetensors_file(tensors, metadata))


def load_tensors(path: Path, *, finite: bool = True) -> "dict[str, Tensor]":
    """Reads a safetensors file.

    Raises:
        ArtefactError: Missing, a pickle, corrupt or truncated, or (`finite`) with NaN or infinity in it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix in PICKLES:
        raise ArtefactError(f"{path}: pickled weights are refused; convert them to safetensors first")
    if not path.is_file():
        raise ArtefactError(f"{path} is missing")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise ArtefactError(f"{path} is not a whole safetensors file ({e})") from None
    for name, t in tensors.items():
        if finite and t.is_floating_point() and not all_finite(t):
            raise ArtefactError(f"{path}: tensor {name!r} has NaN or infinity in it")
    return tensors
