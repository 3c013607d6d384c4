"""Edits in checkpoints: an ordinary transformers or diffusers folder, with base tensors and edits beside it to take them back."""

import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from .. import __version__
from ..base.errors import ArtefactError, InputError, MatchedNothing, UnknownName
from ..base.files import inside, load_tensors, new_folder, read_json, reading, save_tensors, sha256_file, write_json
from ..base.running import quiet
from .edit import Edit
from .overlay import Entry, Overlay
from .parts import parameter, tensor_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..t2i.host import ImageHost
    from .hosts import Host

FORMAT = 1
LEDGER, BASE, EDITS = "efface_ledger.json", "efface_base.safetensors", "efface_edits"
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_DIGESTS = "efface-model.json"
"""Digests of a packaged model's files, which are not those of what is written."""
_OVERLAYS: "WeakKeyDictionary[nn.Module, Overlay]" = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class CheckpointHost:
    """A model from a folder and its tokenizer: as much of a host as weight edits need."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase | None"
    name: str


@dataclass(frozen=True, eq=False)
class Ledger:
    """What was read from a ledger."""

    base: dict[str, Tensor]
    """Parameter -> value under all edits."""
    result: dict[str, str]
    """Parameter -> digest of the value with the edits."""
    entries: list[Entry]


def overlay_of(host: "Host | CheckpointHost") -> Overlay:
    """The edits on the host's model; those in the ledger of the folder it came from are known."""
    overlay = _OVERLAYS.get(host.model)
    if overlay is None:
        overlay = Overlay(getattr(host, "selective", False))
        folder = Path(str(getattr(host.model, "name_or_path", "") or "."))
        if (folder / LEDGER).is_file():
            _restore(overlay, host.model, folder)
        _OVERLAYS[host.model] = overlay
    return overlay


def apply_edits(host: "Host | str | Path", edits: Sequence[Edit | str | Path], out: str | Path, *, force: bool = False) -> Path:
    """Writes the host (or the checkpoint in a folder) with the edits in its weights; the host stays as it was.

    `out` is what `save_pretrained` writes (model and tokenizer, or pipeline), with `efface_ledger.json`, `efface_base.safetensors`
    and `efface_edits/`. Edits that lie in its weights already stay, so edits stack.

    Raises:
        InputError: An edit without a permanent form or for another base (`force` overrides the latter and is recorded);
            or `out` exists.
        MatchedNothing: No edits.
    """
    out = Path(out)
    if not edits:
        raise MatchedNothing("apply: no edits given")
    loaded = [e if isinstance(e, Edit) else Edit.load(e) for e in edits]
    for edit in loaded:
        edit.require_permanent()
    place: Any = load_checkpoint(host) if isinstance(host, str | Path) else host
    overlay = overlay_of(place)
    with ExitStack() as undo:
        for edit in loaded:
            undo.enter_context(edit.applied(place, force=force))
        for entry in overlay.entries.values():
            entry.edit.require_permanent()
        with new_folder(out) as work:
            _save_model(place, work)
            write_ledger(work, overlay, place.model)
    return out


def undo_edits(folder: str | Path, names: Iterable[str | Path] | None, out: str | Path) -> Path:
    """Writes the checkpoint in `folder` without some of its edits (None: without any) to `out`.

    The touched tensors are the base's, to the bit, with the other edits put on anew.

    Args:
        folder: What `apply_edits` wrote.
        names: Each an edit's name, its folder, or at least six digits of its digest.
        out: A new folder; without edits left it has no ledger.

    Raises:
        ArtefactError: No ledger, or one that does not belong to these weights.
        UnknownName: No such edit in it; names those there are.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / LEDGER).is_file():
        raise ArtefactError(f"{folder} has no {LEDGER}: nothing was applied to it by efface, or the ledger was not copied with it")
    place: Any = load_checkpoint(folder, tokenizer=False)
    overlay = overlay_of(place)
    base = {n: tensor_digest(n, t) for n, t in overlay.base.items()}
    edits = [e.edit for e in overlay.entries.values()]
    for digest in [e.digest for e in edits] if names is None else dict.fromkeys(_find(n, edits) for n in names):
        overlay.remove(place, digest)
    for name in set(base) - set(overlay.base):
        if tensor_digest(name, parameter(place.model, name)) != base[name]:
            raise ArtefactError(f"{folder}: {name} could not be restored to its base")
    with new_folder(out) as work:
        _save_model(place, work)
        _copy_rest(folder, work)
        if overlay.entries:
            write_ledger(work, overlay, place.model)
    return out


def write_ledger(folder: Path, overlay: Overlay, model: nn.Module) -> None:
    """Base tensors, edits and, last, the ledger."""
    save_tensors(folder / BASE, overlay.base)
    rows = []
    for entry in overlay.entries.values():
        where = f"{EDITS}/{entry.edit.digest[:16]}"
        entry.edit.save(folder / where)
        rows.append({"name": entry.edit.name, "digest": entry.edit.digest, "folder": where, "forced": entry.forced})
    base = {
        n: {"sha256": tensor_digest(n, t), "dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)}
        for n, t in overlay.base.items()
    }
    result = {n: tensor_digest(n, parameter(model, n)) for n in overlay.base}
    files = {BASE: sha256_file(folder / BASE)}
    ledger = {"format": FORMAT, "efface": __version__, "base": base, "result": result, "edits": rows, "files": files}
    write_json(folder / LEDGER, ledger)


def read_ledger(folder: Path) -> Ledger:
    """Reads and checks a ledger, its base tensors and its edits.

    Raises:
        ArtefactError: Of another format, incomplete, or altered.
    """
    values = read_json(folder / LEDGER)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ArtefactError(f"{folder / LEDGER}: not a ledger of format {FORMAT}")
    with reading(folder / LEDGER):
        path = inside(folder, BASE)
        if not path.is_file() or sha256_file(path) != values["files"][BASE]:
            raise ArtefactError(f"{path} is missing or was altered: its sha256 is not the ledger's")
        base = load_tensors(path)
        if {n: tensor_digest(n, t) for n, t in base.items()} != {n: b["sha256"] for n, b in values["base"].items()}:
            raise ArtefactError(f"{path}: the base tensors are not those of the ledger")
        entries = [Entry(Edit.load(inside(folder, row["folder"])), bool(row["forced"])) for row in values["edits"]]
        if [e.edit.digest for e in entries] != [row["digest"] for row in values["edits"]]:
            raise ArtefactError(f"{folder}: the edits in {EDITS} are not those of the ledger")
        result = {n: str(sha) for n, sha in values["result"].items()}
    if result.keys() != base.keys():
        raise ArtefactError(f"{folder / LEDGER}: the tensors with the edits in them are not those of the base")
    return Ledger(base, result, entries)


def load_checkpoint(folder: str | Path, *, tokenizer: bool = True) -> "CheckpointHost | ImageHost":
    """The model or pipeline in a folder, in the dtypes in which it was saved.

    Raises:
        ArtefactError: Not a transformers or diffusers checkpoint with safetensors weights.
    """
    import transformers

    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        models = import_module("...t2i.models", __name__)  # by its name: this package imports no hosts
        return models.load_pipeline(folder, dtype="auto", safety=True)
    if not (folder / "config.json").is_file():
        raise ArtefactError(f"{folder} is not a transformers checkpoint: config.json is missing")
    name = (read_json(folder / "config.json").get("architectures") or ["AutoModelForCausalLM"])[0]
    loader = getattr(transformers, str(name), None)
    if loader is None:
        raise ArtefactError(f"{folder}: this transformers has no class {name!r}; upgrade it")
    try:
        with quiet():
            model = loader.from_pretrained(folder, dtype="auto", use_safetensors=True, local_files_only=True).eval()
    except (OSError, ValueError) as e:
        raise ArtefactError(f"{folder}: {name} could not be loaded ({e})") from None
    has = tokenizer and (folder / "tokenizer_config.json").is_file()
    tok = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True) if has else None
    return CheckpointHost(model, tok, folder.name)


def _restore(overlay: Overlay, model: nn.Module, folder: Path) -> None:
    ledger = read_ledger(folder)
    for name, tensor in ledger.base.items():
        now = parameter(model, name)
        if now.dtype != tensor.dtype:
            wanted = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"{folder} was edited in {wanted} and is loaded in another dtype; load it with --dtype {wanted}")
        if tensor_digest(name, now) != ledger.result[name]:
            raise ArtefactError(f"{folder}: {name} is not what its ledger says; the weights were changed after the edits")
    overlay.restore(model, ledger.base, ledger.entries)


def _save_model(place: Any, folder: Path) -> None:
    """An ordinary checkpoint. Raises OSError where the disk does not take it, which safetensors calls by another name."""
    from safetensors import SafetensorError

    pipeline = getattr(place, "pipeline", None)
    wrapped = sorted({n.partition(".")[0] for n, _ in place.model.named_parameters() if ".base_layer." in n})
    if pipeline is not None and wrapped:
        raise InputError(f"a LoRA lies on {', '.join(wrapped)}, and the checkpoint would hold half of it: fuse or unload it first")
    try:
        with quiet():
            (place.model if pipeline is None else pipeline).save_pretrained(folder)
            tokenizer = None if pipeline is not None else place.tokenizer
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
    except SafetensorError as e:
        raise OSError(f"the model could not be written to {folder.parent} ({e})") from e


def _find(name: str | Path, edits: Sequence[Edit]) -> str:
    """Digest of the edit meant by a name, a folder, or the beginning of a digest."""
    text = str(name)
    if (Path(text) / "edit.json").is_file():
        text = Edit.load(text).digest
    found = [e.digest for e in edits if text == e.name or (len(text) >= 6 and e.digest.startswith(text))]
    if len(found) != 1:
        raise UnknownName(
            "edit in this checkpoint",
            str(name),
            [e.name for e in edits],
            "An edit's name, its folder, or six digits of its digest",
        )
    return found[0]


def _copy_rest(folder: Path, work: Path) -> None:
    """Tokenizer and other files that are neither weights nor ledger."""
    for path in folder.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHTS) and path.name not in (LEDGER, _DIGESTS) and not (work / path.name).exists():
            shutil.copyfile(path, work / path.name)
