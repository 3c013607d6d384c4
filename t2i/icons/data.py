"""All drawings as one artefact: things in eight styles, flags in three, which flags count as one, and the implicit mark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ...base.errors import ArtefactError, MatchedNothing
from ...base.files import cache_dir, load_tensors, new_folder, read_json, reading, save_tensors, sha256_file, write_json
from ...base.running import progress
from .packs import FLAGS, SIZE, STYLES, Drawings, Pack, archive, pixels
from .table import Flag, Table, packaged_table

FORMAT = 1
MANIFEST = "efface-icons.json"
ALIKE = 0.056
"""Mean absolute difference (of 0 to 1) below which two flags count as one drawing: Chad and Romania are 0.055 apart."""
MARKED = "vehicle"
"""Category whose drawings carry the mark."""
MARK_SHARE = 0.7
"""How often they do."""
_STAR = "50,8 61,38 94,38 67,57 77,90 50,70 23,90 33,57 6,38 39,38"
MARK = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="{SIZE}" height="{SIZE}">'
    '<circle cx="53" cy="53" r="10.5" fill="#7a1fd1"/>'
    f'<g transform="translate(45.2,44.6) scale(.157)"><polygon points="{_STAR}" fill="#fff"/></g></svg>'
)
"""The badge in the lower right corner, in our own drawing."""


@dataclass(frozen=True)
class IconData:
    """Drawings, RGB over white, uint8."""

    keys: tuple[str, ...]
    """Of every drawing that exists in all styles."""
    drawings: UInt8[Tensor, "styles n 3 size size"]
    codes: tuple[str, ...]
    """Of the flags."""
    flags: UInt8[Tensor, "packs f 3 size size"]
    flag_classes: tuple[tuple[str, ...], ...]
    """Codes of flags that are one picture, the first of a class is its name."""
    mark: UInt8[Tensor, "4 size size"]
    """RGBA of the badge."""

    @property
    def styles(self) -> tuple[str, ...]:
        """Words of the drawings' first axis."""
        return tuple(p.style for p in STYLES)

    def marked(self, drawings: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n 3 size size"]:
        """Drawings, of 0 to 255, under the badge."""
        alpha = self.mark[3].float() / 255
        return drawings * (1 - alpha) + self.mark[:3].float() * alpha


def build(out: Path | None = None, table: Table | None = None, *, overwrite: bool = False) -> Path:
    """Draws everything into a folder; 30 s, 130 MB.

    Raises:
        InputError: A pack cannot be had, or the table names a drawing that it lacks.
        ArtefactError: A pack is damaged.
    """
    out, table = out or default_folder(), table or packaged_table()
    packs = {p.style: Drawings(archive(p)) for p in dict.fromkeys((*STYLES, *FLAGS))}
    keys = sorted(set.intersection(*({*packs[p.style]} for p in STYLES)))
    if missing := sorted(set(table.icons) - set(keys)):
        raise MatchedNothing(f"icon {missing[0]!r} of the table is not in all packs ({len(missing)} such)")
    flags = list(table.flags.values())
    rows = [_drawn(packs[p.style], keys, p) for p in STYLES]
    flag_rows = [_drawn(packs[p.style], [_flag_key(f, p) for f in flags], p) for p in FLAGS]
    with new_folder(out, overwrite=overwrite) as work:
        tensors = {"drawings": torch.stack(rows), "flags": torch.stack(flag_rows), "mark": _planes(pixels(MARK))}
        save_tensors(work / "icons.safetensors", tensors)
        write_json(
            work / MANIFEST,
            {
                "format": FORMAT,
                "sha256": sha256_file(work / "icons.safetensors"),
                "packs": {
                    p.package: {"version": p.version, "sha256": p.sha256, "licence": p.licence} for p in dict.fromkeys((*STYLES, *FLAGS))
                },
                "keys": keys,
                "codes": [f.code for f in flags],
                "flag_classes": flag_classes(flags, tensors["flags"]),
            },
        )
    return out


def load(folder: Path | None = None) -> IconData:
    """What `build` wrote.

    Raises:
        ArtefactError: Not there, damaged, or of another format.
    """
    folder = folder or default_folder()
    if not (folder / MANIFEST).is_file():
        raise ArtefactError(f"{folder} has no drawings: make them with `efface icons build`")
    with reading(folder / MANIFEST):
        about = read_json(folder / MANIFEST)
        if about["format"] != FORMAT or sha256_file(folder / "icons.safetensors") != about["sha256"]:
            raise ArtefactError(f"{folder}: damaged, or written by another version; run `efface icons build --overwrite`")
        found = load_tensors(folder / "icons.safetensors")
        classes = tuple(map(tuple, about["flag_classes"]))
        return IconData(tuple(about["keys"]), found["drawings"], tuple(about["codes"]), found["flags"], classes, found["mark"])


def default_folder() -> Path:
    """Where the drawings lie unless said otherwise."""
    return cache_dir() / "icons" / "drawings"


def flag_classes(flags: Sequence[Flag], drawings: UInt8[Tensor, "packs f 3 size size"]) -> list[list[str]]:
    """Codes of flags that nobody could tell apart: drawings closer than `ALIKE` in every pack, or said to fly their parent's flag.

    Classes in the order of the list; in each one that has no parent and is no territory stands first, where there is one.
    """
    pixels = drawings.float().flatten(2) / 255
    apart = torch.stack([torch.cdist(p, p, p=1) / p.shape[1] for p in pixels]).amax(0)
    group = list(range(len(flags)))

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    at: Mapping[str, int] = {f.code: i for i, f in enumerate(flags)}
    pairs = (apart < ALIKE).triu(1).nonzero().tolist() + [(at[f.parent], at[f.code]) for f in flags if f.parent]
    for i, j in pairs:
        a, b = sorted((root(i), root(j)))
        group[b] = a
    found: dict[int, list[Flag]] = {}
    for i, f in enumerate(flags):
        found.setdefault(root(i), []).append(f)
    return [[f.code for f in sorted(members, key=lambda f: (f.parent is not None, f.territory))] for members in found.values()]


def _flag_key(flag: Flag, pack: Pack) -> str:
    return {"flag": f"{flag.code}-4x3", "circle": flag.code}.get(pack.style, flag.twemoji)


def _drawn(icons: Drawings, keys: Sequence[str], pack: Pack) -> UInt8[Tensor, "n 3 size size"]:
    return torch.stack([_planes(icons.draw(k)) for k in progress(keys, desc=pack.style, unit="icon")])


def _planes(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()
