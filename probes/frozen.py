"""Frozen erasers as folders: `eraser.json` and `eraser.safetensors`, written whole or not at all."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor

from ..base.errors import ArtefactError, InputError, UnknownName
from ..base.files import load_tensors, new_folder, read_json, reading, save_tensors, sha256_file, write_json

FORMAT = 1
MANIFEST, TENSORS = "eraser.json", "eraser.safetensors"
_KINDS: dict[str, "type[Frozen]"] = {}


class Frozen:
    """An eraser whose fields are tensors: a value that is saved and loaded. Subclasses are frozen dataclasses with a `kind`."""

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        _KINDS[cls.kind] = cls

    def tensors(self) -> dict[str, Tensor]:
        """Its fields by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(cast(Any, self))}

    def save(self, folder: str | Path) -> None:
        """Writes the folder.

        Raises:
            InputError: It exists and is not empty.
        """
        with new_folder(Path(folder)) as out:
            save_tensors(out / TENSORS, self.tensors())
            shapes = {n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in self.tensors().items()}
            write_json(out / MANIFEST, {"format": FORMAT, "kind": self.kind, "tensors": shapes, "sha256": sha256_file(out / TENSORS)})


def load_eraser(folder: str | Path) -> Frozen:
    """The eraser of a folder, of whatever kind.

    Raises:
        ArtefactError: Missing, altered, of another format or kind, or tensors that do not fit together.
    """
    from . import erasers, oracles  # noqa: F401  (their classes are what there is to load)

    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    with reading(folder / MANIFEST):
        if manifest["format"] != FORMAT:
            raise ArtefactError(f"{folder}: format {manifest['format']!r} is unknown; this version reads {FORMAT}")
        if manifest["kind"] not in _KINDS:
            raise UnknownName(f"kind of eraser in {folder}", str(manifest["kind"]), _KINDS)
        shapes = {n: (tuple(e["shape"]), e["dtype"]) for n, e in manifest["tensors"].items()}
        digest = manifest["sha256"]
    tensors = load_tensors(folder / TENSORS)
    found = {n: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()}
    if found != shapes or sha256_file(folder / TENSORS) != digest:
        raise ArtefactError(f"{folder}: {TENSORS} is not the file that {MANIFEST} was written for")
    try:
        return cast(Any, _KINDS[manifest["kind"]])(**tensors)
    except (TypeError, InputError) as e:
        raise ArtefactError(f"{folder}: {e}") from None
