"""A concept that the tiny pipeline's words can say, and judges that know by heart what the base draws."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from t2i._planted import word_sae
from tiny_pipelines import tiny_pipeline

from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.t2i import load_pipeline
from efface.t2i.evaluation import drawn
from efface.t2i.evaluation.ground import ImageSuiteConfig, ground
from efface.t2i.evaluation.judging import NONE
from efface.t2i.host import ImageHost
from efface.t2i.methods.itd.config import ItdConfig

STYLES = ("red", "blue", "green", "old")
THINGS = ("dog", "cat", "apple", "bus", "tree")
ARTICLES = {"train": "a", "validation": "the", "test": "my"}
HARD = "puppy by the sea"
"""A held-out way to ask that nobody can draw."""
STEPS = ["--steps", "2", "--device", "cpu"]
SMALL = ["seeds=[0,1]", "general=8", "kid_size=2", "draws=100", "control_draws=2", "ways=5"]
CONFIG = ImageSuiteConfig(seeds=(0, 1), general=8, kid_size=2, draws=100, control_draws=2, ways=5)


def lines(split: str, phrase: str, thing: str, way: str = "name") -> list[dict]:
    a = ARTICLES[split]
    labels = {"object": thing, "way": way}
    styled = [{"text": f"{a} {s} {phrase}", "subject": phrase, "labels": {**labels, "style": s}} for s in STYLES]
    return [{"text": f"{a} {phrase}", "subject": phrase, "labels": labels}, *styled]


def values() -> dict[str, Any]:
    """A concept file."""
    asked = {s: [*lines(s, "dog", "dog"), *lines(s, "puppy", "dog", "seen")] for s in ARTICLES}
    asked["test"] += lines("test", HARD, "dog", "held_out")
    return {
        "format": 1, "name": "dog", "kind": "object", "judge": "icons/object", "anchor": "tree", "target": asked,
        "neighbours": {s: lines(s, "cat", "cat") for s in ARTICLES},
        "general": {s: [x for t in THINGS[2:] for x in lines(s, t, t)] for s in ARTICLES},
    }  # fmt: skip


def dogs() -> Concept:
    return Concept.from_mapping(values())


def write_concept(folder: Path) -> Path:
    (folder / "dog.json").write_text(json.dumps(values()))
    return folder / "dog.json"


def write_pipeline(folder: Path) -> Path:
    tiny_pipeline("sd").save_pretrained(folder)
    return folder


def host_of(folder: Path, steps: int = 2) -> ImageHost:
    host = load_pipeline(folder)
    host.steps = steps
    return host


def dog_edit(host: ImageHost, **config: object) -> Edit:
    """Interpret-then-Deactivate of the planted feature, behind its gate: in force where a prompt says «dog»."""
    from efface.deactivate import erase

    options = {"preset": "efface", "n_contrast": 1, "fpr": 0.0, **config}
    return erase("itd", host, [dogs()], [word_sae(host)], **options)


@dataclass
class KnowingJudge:
    """Sees in a picture what its prompt asked for, where it is to the bit one that it was shown; else nothing."""

    head: str
    copy: str
    known: dict[bytes, str] = field(default_factory=dict)
    version: str = "1"
    threshold: float = 0.5
    features_name: str = "4 x 4 pixels"

    @property
    def name(self) -> str:
        return f"icons/{self.head}/{self.copy}"

    @property
    def digest(self) -> str:
        return self.name

    @property
    def classes(self) -> tuple[str, ...]:
        return {"object": (*THINGS, NONE), "style": (*STYLES, NONE), "flag": ("France", NONE), "mark": ("plain", "marked")}[self.head]

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        out = torch.full((len(images), len(self.classes)), 0.1 / (len(self.classes) - 1))
        nothing = "plain" if self.head == "mark" else NONE
        for i, image in enumerate(images):
            out[i, self.classes.index(self.known.get(image.numpy().tobytes(), nothing))] = 0.9
        return out

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(images.float() / 255, 8).flatten(1)


def judges(host: ImageHost, splits: tuple[str, ...] = ("validation",), config: ImageSuiteConfig = CONFIG) -> list[dict[str, KnowingJudge]]:
    """Two copies that know the base's pictures of these splits, but those of `HARD`."""
    heads = ("object", "style", "flag", "mark")
    copies = [{h: KnowingJudge(h, c) for h in heads} for c in "AB"]
    for split in splits:
        shared = ground(dogs(), split, config, copies, None)
        images, _ = shared.draw(host, "", shared.whole)
        for ask, image in zip(shared.asks, images, strict=True):
            for head, label in ask.labels.items():
                for copy in copies if ask.subject != HARD else ():
                    copy[head].known[image.numpy().tobytes()] = label
    return copies


def patch_judges(monkeypatch: pytest.MonkeyPatch, copies: list[dict[str, KnowingJudge]]) -> None:
    """Puts them in the place of the icons' judges; unknown names are still told."""
    own = drawn.load_judges

    def load(name: str) -> tuple:
        family, head, copy = (*name.split("/"), "", "")[:3]
        if family != "icons" or head not in copies[0] or copy not in ("", "A", "B"):
            return own(name)
        return tuple(c[head] for c in copies if copy in ("", c[head].copy))

    monkeypatch.setattr(drawn, "load_judges", load)


@dataclass(frozen=True)
class UngatedConfig(ItdConfig):
    """Settings of `ungated`."""


def ungated(host: ImageHost, concepts: Any, preserve: Any, config: UngatedConfig, saes: Any = ()) -> Edit:
    """An eraser without a gate."""
    from dataclasses import replace

    from efface.t2i.methods.itd.fit import fit

    return replace(fit(host, concepts, preserve, replace(config, preset="efface", gate="always", n_contrast=1), saes), eraser="ungated")
