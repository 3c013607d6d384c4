"""Icon packs: ten npm packages, pinned by digest, and their drawings as pixels.

A pack's `icons.json` maps keys to the inside of an SVG; packs of one family name the same thing alike, so a key is a drawing in
several styles.
"""

import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import ArtefactError, InputError, UnknownName
from ...base.files import cache_dir, sha256_file

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("efface")
SIZE = 64
"""Pixels a side."""


@dataclass(frozen=True)
class Pack:
    """One package of drawings."""

    style: str
    """The word for it in captions."""
    package: str
    """Name under `@iconify-json/`."""
    version: str
    sha256: str
    """Of the package's archive."""
    licence: str


STYLES = (
    Pack("noto", "noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "Apache-2.0"),
    Pack("twemoji", "twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7", "CC-BY-4.0"),
    Pack("fluent", "fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b", "MIT"),
    Pack("flat", "fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175", "MIT"),
    Pack("emojione", "emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e", "CC-BY-4.0"),
    Pack("blob", "noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37", "Apache-2.0"),
    Pack("contrast", "fluent-emoji-high-contrast", "1.2.6", "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0", "MIT"),
    Pack("monotone", "emojione-monotone", "1.2.1", "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e", "CC-BY-4.0"),
)
"""Packs of things, in the order of the drawings' first axis."""

FLAGS = (
    Pack("flag", "flag", "1.2.12", "42246bc20f6154739a192172d71ffe477747ad38278f2e912ec43f4dcb5a15e0", "MIT"),
    Pack("circle", "circle-flags", "1.2.11", "ee9a03f6a6fdd79cc6325bdcb7bb93b83d331e60b16e226188f154a64b6bb4a9", "MIT"),
    STYLES[1],
)
"""Packs of flags."""


def archive(pack: Pack) -> Path:
    """The pack's archive, checked: from `EFFACE_ICONS` where that is set, else from the cache, else fetched with npm into it.

    Raises:
        InputError: It is not in `EFFACE_ICONS`, or npm is missing or failed.
        ArtefactError: Another digest than the pinned one.
    """
    name = f"iconify-json-{pack.package}-{pack.version}.tgz"
    offline = os.environ.get("EFFACE_ICONS")
    folder = Path(offline) if offline else cache_dir() / "downloads" / "icons"
    path = folder / name
    if offline and not path.is_file():
        raise InputError(f"EFFACE_ICONS={offline} has no {name}; put the archive there, or unset EFFACE_ICONS to fetch it")
    if not path.is_file():
        _npm_pack(pack, name, folder)
    if (found := sha256_file(path)) != pack.sha256:
        if not offline:
            path.unlink()
        raise ArtefactError(f"{name} has sha256 {found[:12]}…, pinned is {pack.sha256[:12]}…; fetch it again")
    return path


def _npm_pack(pack: Pack, name: str, folder: Path) -> None:
    wanted = f"@iconify-json/{pack.package}@{pack.version}"
    manual = f"or fetch it on another machine (npm pack {wanted}), put {name} into a folder and set EFFACE_ICONS to that folder"
    if (npm := shutil.which("npm")) is None:
        raise InputError(f"icon pack {wanted}: npm is not installed; install it, {manual}")
    folder.mkdir(parents=True, exist_ok=True)
    log.info("fetching %s", wanted)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        done = subprocess.run([npm, "pack", "--silent", "--pack-destination", work, wanted], capture_output=True, text=True, check=False)
        if done.returncode or not (Path(work) / name).is_file():
            why = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            raise InputError(f"icon pack {wanted}: npm could not fetch it ({why}); try again, {manual}")
        os.replace(Path(work) / name, folder / name)


class Drawings:
    """The icons of a pack by key.

    Args:
        path: Its archive.

    Raises:
        ArtefactError: Not an archive with an `icons.json` of Iconify's form.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tarfile.open(path) as tar:
                member = tar.extractfile("package/icons.json")
                if member is None:
                    raise KeyError("package/icons.json is not a file")
                self._all: Mapping[str, Any] = json.load(member)
            self._icons, self._aliases = dict(self._all["icons"]), dict(self._all.get("aliases", {}))
        except (tarfile.TarError, OSError, EOFError, KeyError, TypeError, ValueError) as e:
            raise ArtefactError(f"{path} is no icon pack ({e}); remove it and try again") from None

    def __contains__(self, key: str) -> bool:
        return key in self._icons or key in self._aliases

    def __iter__(self) -> Iterator[str]:
        """Keys of its own drawings; aliases are other names of them."""
        return iter(self._icons)

    def svg(self, key: str) -> str:
        """A complete SVG, `SIZE` pixels a side; what takes the text's colour is black.

        Raises:
            UnknownName: No such icon.
            ArtefactError: An alias that turns or mirrors its parent, which no drawing used here needs.
        """
        icon, asked = self._icons.get(key), key
        while icon is None:
            if key not in self._aliases:
                raise UnknownName(f"icon of {self.path.name}", asked, [*self._icons])
            alias = self._aliases[key]
            if set(alias) & {"rotate", "hFlip", "vFlip"}:
                raise ArtefactError(f"{self.path.name}: {asked} is a turned {alias['parent']}, which is not supported")
            key = alias["parent"]
            icon = self._icons.get(key)
        w, h = (icon.get(side, self._all.get(side, 16)) for side in ("width", "height"))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {w} {h}" width="{SIZE}" height="{SIZE}" color="#000">{icon["body"]}</svg>'
        )

    def draw(self, key: str) -> "np.ndarray":
        """The icon over white, uint8 `[SIZE, SIZE, 3]`."""
        return over_white(pixels(self.svg(key)))


def pixels(svg: str) -> "np.ndarray":
    """RGBA, uint8 `[SIZE, SIZE, 4]`, not premultiplied.

    Raises:
        InputError: resvg-py or Pillow is not installed.
        ArtefactError: Not an SVG that can be drawn.
    """
    import io

    import numpy as np

    try:
        import resvg_py
        from PIL import Image
    except ImportError as e:
        raise InputError(f"drawing icons needs {e.name}: pip install 'efface[icons]'") from None
    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
        image = Image.open(io.BytesIO(png)).convert("RGBA")
    except (ValueError, OSError, RuntimeError) as e:
        raise ArtefactError(f"an icon that cannot be drawn ({e}): {svg[:80]}…") from None
    if image.size != (SIZE, SIZE):  # what is not square keeps its shape: centred
        whole = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 0))
        whole.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
        image = whole
    return np.asarray(image)


def over_white(rgba: "np.ndarray") -> "np.ndarray":
    """RGBA `[h, w, 4]` -> RGB `[h, w, 3]`, both uint8, over a white ground."""
    import numpy as np

    alpha = rgba[..., 3:].astype(np.float32) / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
