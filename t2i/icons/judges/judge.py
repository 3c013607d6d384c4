"""Judges as files: half-precision weights, a config with the class lists, a manifest of digests that is checked when they are read."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ....base.config import from_mapping
from ....base.errors import ArtefactError, InputError, UnknownName
from ....base.files import digest, inside, load_tensors, new_folder, read_json, reading, save_tensors, sha256_file, write_json
from .examples import HEADS
from .nets import JudgeNet
from .recipe import RECIPES, Augmentation, JudgeRecipe, LoopConfig

if TYPE_CHECKING:
    from ...evaluation.judging import Judge

FORMAT = 1
VERSION = "1"
MANIFEST, CONFIG, WEIGHTS = "manifest.json", "config.json", "model.safetensors"
BATCH = 128
"""Pictures scored at once."""


@dataclass(frozen=True, eq=False)
class IconJudge:
    """One copy: a network with its heads."""

    net: JudgeNet
    recipe: JudgeRecipe
    classes: Mapping[str, tuple[str, ...]]
    digest: str
    _last: list[Any] = field(default_factory=list, init=False, repr=False)
    """Pictures scored last and their scores: the heads of a copy are asked one after another."""

    @property
    def name(self) -> str:
        """`A` or `B`."""
        return self.recipe.name

    def head(self, name: str) -> "HeadJudge":
        """The judge of one question.

        Raises:
            UnknownName: No such head.
        """
        if name not in self.classes:
            raise UnknownName("head of the judge", name, self.classes)
        return HeadJudge(self, name)

    @torch.no_grad()
    def scores(self, images: UInt8[Tensor, "n 3 h w"]) -> dict[str, Float[Tensor, "n _"]]:
        """Head -> probabilities, all from one pass; not computed again for the pictures that it was given last."""
        _check(images)
        if self._last and self._last[0]() is images and self._last[1] == images._version:
            return self._last[2]
        found = [self.net(x.float() / 255) for x in images.split(BATCH)]
        scores = {h: torch.cat([f[h] for f in found]) for h in self.classes}
        self._last[:] = [ref(images), images._version, scores]
        return scores

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Penultimate activations, the same for every head."""
        _check(images)
        return torch.cat([self.net.features(x.float() / 255) for x in images.split(BATCH)])


@dataclass(frozen=True, eq=False)
class HeadJudge:
    """A copy asked one question: a `Judge`."""

    judge: IconJudge
    head: str

    version: str = VERSION

    @property
    def name(self) -> str:
        """`icons/<head>/<copy>`."""
        return f"icons/{self.head}/{self.judge.name}"

    @property
    def digest(self) -> str:
        """Of weights, class list and threshold."""
        return digest([self.judge.digest, self.head])

    @property
    def classes(self) -> tuple[str, ...]:
        """What it can say."""
        return self.judge.classes[self.head]

    @property
    def threshold(self) -> float:
        """Probability that a class needs to be said."""
        return self.judge.recipe.threshold

    @property
    def features_name(self) -> str:
        """The trunk, its version and digest: the same for the heads of a copy."""
        return f"icons judge {self.judge.name}, version {VERSION}, {self.judge.digest[:12]}"

    def scores(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Probability of each class."""
        return self.judge.scores(images)[self.head]

    def features(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Activations of the penultimate layer."""
        return self.judge.features(images)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1:] != (3, 64, 64) or images.dtype != torch.uint8 or not len(images):
        raise InputError(f"icons judge: pictures as uint8 [n 3 64 64] expected, {images.dtype} {list(images.shape)} found")


def save_judge(
    net: JudgeNet, recipe: JudgeRecipe, classes: Mapping[str, tuple[str, ...]], things: Sequence[int], out: Path, *, overwrite: bool = False
) -> Path:  # fmt: skip
    """Writes a judge folder, weights in float16."""
    halved = {k: v.half() for k, v in net.state_dict().items() if v.is_floating_point()}
    net.load_state_dict({k: v.float() for k, v in halved.items()}, strict=False)  # what will be read again
    settings = {
        "version": VERSION,
        "recipe": dataclasses.asdict(recipe),
        "classes": {k: list(v) for k, v in classes.items()},
        "things": list(things),
        "flags": net.flag_of.tolist(),
    }
    with new_folder(out, overwrite=overwrite) as work:
        save_tensors(work / WEIGHTS, halved, {"format": "pt"})
        write_json(work / CONFIG, {**settings, "fingerprint": fingerprint(net.eval())})
        write_json(work / MANIFEST, {"format": FORMAT, "files": {n: sha256_file(work / n) for n in (CONFIG, WEIGHTS)}})
    return out


@torch.no_grad()
def fingerprint(net: JudgeNet) -> list[float]:
    """Eight logits a head on two fixed ramps: what a judge that was read must answer."""
    ramp = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    found = net.logits(torch.cat([ramp, ramp.flip(1, 3)]))
    return [round(x, 4) for logits in found.values() for row in logits[:, :4] for x in row.tolist()]


def load_judge(folder: Path) -> IconJudge:
    """Reads a judge folder.

    Raises:
        ArtefactError: Missing, changed, of another format, weights that do not fit the config, or answers that are not its own.
    """
    with reading(folder / MANIFEST):
        about = read_json(folder / MANIFEST)
        if about["format"] != FORMAT:
            raise ArtefactError(f"{folder}: format {about['format']!r}, this version reads {FORMAT}")
        for name in (CONFIG, WEIGHTS):
            if sha256_file(inside(folder, name)) != about["files"][name]:
                raise ArtefactError(f"{folder}: {name} is not the file of the manifest; it was changed or is cut off")
        config = read_json(folder / CONFIG)
        recipe = _recipe(config["recipe"])
        classes = {head: tuple(names) for head, names in config["classes"].items()}
        net = JudgeNet(recipe, classes, config["things"], config.get("flags", ()))
        try:
            counts = {k: v for k, v in net.state_dict().items() if not v.is_floating_point()}
            net.load_state_dict({k: v.float() for k, v in load_tensors(folder / WEIGHTS).items()} | counts)
        except RuntimeError as e:
            raise ArtefactError(f"{folder}: the weights do not fit the config ({str(e).splitlines()[0]})") from None
        if not np.allclose(fingerprint(net.eval()), config["fingerprint"], atol=2e-3):
            raise ArtefactError(f"{folder}: the network answers otherwise than when it was saved; is another version of torch at fault?")
    return IconJudge(net.eval(), recipe, classes, digest(about["files"]))


def _recipe(values: Mapping[str, Any]) -> JudgeRecipe:
    plain = {k: v for k, v in values.items() if k not in ("augmentation", "loop", "refine")}
    augmentation = from_mapping(Augmentation, values["augmentation"], where="augmentation")
    loop = from_mapping(LoopConfig, values["loop"], where="loop")
    refine = from_mapping(LoopConfig, values["refine"], where="refine") if values.get("refine") else None
    return from_mapping(JudgeRecipe, {**plain, "augmentation": augmentation, "loop": loop, "refine": refine}, where="recipe")


SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "judges"
"""Where the copies that ship lie."""


@cache
def packaged(copy: str) -> IconJudge:
    """A copy that ships.

    Raises:
        UnknownName: No such copy.
        InputError: This installation has no judges.
    """
    if copy not in RECIPES:
        raise UnknownName("copy of the icons judge", copy, RECIPES)
    if not (SHIPPED / copy).is_dir():
        raise InputError(f"the judges of the icons have no weights here: train them with `efface icons judges --out {SHIPPED}`")
    return load_judge(SHIPPED / copy)


def load(name: str) -> "tuple[Judge, ...]":
    """Judges by `object` (both copies) or `object/A`.

    Raises:
        UnknownName: No such head or copy.
    """
    head, _, copy = name.partition("/")
    if head not in HEADS:
        raise UnknownName("head of the icons judges", head, HEADS)
    return tuple(packaged(c).head(head) for c in ((copy,) if copy else tuple(RECIPES)))
