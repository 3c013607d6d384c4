"""A miniature in miniature: plain pictures with names, a host that pastes them, an edit that stops it, judges that compare pixels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.nn.functional as F

from efface.base.files import digest
from efface.deactivate.concept import Concept
from efface.t2i.evaluation.judging import NONE
from efface.t2i.icons import concepts
from efface.t2i.icons.packs import STYLES
from efface.t2i.icons.table import Flag, Icon, Object, Table

WORDS = [p.style for p in STYLES]
THINGS = ("apple", "ball", "bus", "cube", "drum")


def table() -> Table:
    icons = {k: Icon(k, k, "thing", (f"some {k} or other",), (f"a held {k}",)) for k in THINGS}
    objects = {"apple": Object("apple", ("apple",), "ball", ("bus",)), "ball": Object("ball", ("ball",), "apple", ("drum",))}
    return Table(icons, objects, {"fr": Flag("fr", "flag-france", "France", ("the tricolour",), "French")})


@cache
def drawings() -> torch.Tensor:
    """`[styles things 3 64 64]`: things differ in colour, styles in size."""
    out = torch.full((8, 5, 3, 64, 64), 255, dtype=torch.uint8)
    for s in range(8):
        for i, colour in enumerate(([220, 0, 0], [0, 180, 0], [0, 0, 220], [200, 200, 0], [0, 180, 200])):
            side = 8 + 3 * s
            out[s, i, :, 32 - side : 32 + side, 32 - side : 32 + side] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return out


def concept(name: str = "apple") -> Concept:
    return Concept.from_mapping(concepts.mapping(name, table()))


@dataclass
class PastingHost:
    """Draws the thing and the style that the prompt names, with a little noise of the seed; `erased` things come out as `instead`."""

    name: str = "pasting"
    digest: str = "0" * 64
    sampling: Mapping[str, object] = field(default_factory=lambda: {"steps": 1})
    erased: set[str] = field(default_factory=set)
    style_lost: bool = False
    drawn: int = 0

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> torch.Tensor:
        assert len(prompts) == len(seeds)
        self.drawn += len(prompts)
        return torch.stack([self.draw(p, s) for p, s in zip(prompts, seeds, strict=True)])

    def draw(self, prompt: str, seed: int) -> torch.Tensor:
        gen = torch.Generator().manual_seed(seed)
        style = next(
            (i for i, w in enumerate(WORDS) if w in prompt.split() or f"{w}," in prompt), int(torch.randint(8, (1,), generator=gen))
        )
        thing = next((i for i, t in enumerate(THINGS) if t in prompt), None)
        if self.style_lost and thing is not None and THINGS[thing] in self.erased:
            style = (style + 4) % 8
        picture = torch.full((3, 64, 64), 255.0) if thing is None else drawings()[style, thing].float()
        if thing is not None and THINGS[thing] in self.erased:
            picture = drawings()[style, THINGS.index("cube")].float()
        return (picture + 3 * torch.randn(3, 64, 64, generator=gen)).clamp(0, 255).round().to(torch.uint8)


@dataclass
class PastingEdit:
    """Takes things from a `PastingHost`."""

    things: tuple[str, ...]
    eraser: str = "forgetting"
    style_lost: bool = False

    @property
    def digest(self) -> str:
        return digest([self.things, self.style_lost])

    @contextmanager
    def applied(self, host: PastingHost) -> Iterator[None]:
        before = host.erased, host.style_lost
        host.erased, host.style_lost = host.erased | set(self.things), self.style_lost
        try:
            yield
        finally:
            host.erased, host.style_lost = before


@dataclass
class PixelJudge:
    """Says the closest drawing, or nothing where none is close."""

    head: str
    copy: str
    version: str = "1"
    threshold: float = 0.5
    features_name: str = "8 x 8 pixels"
    never: tuple[str, ...] = ()
    """Classes it cannot see."""

    @property
    def name(self) -> str:
        return f"icons/{self.head}/{self.copy}"

    @property
    def digest(self) -> str:
        return self.name

    @property
    def classes(self) -> tuple[str, ...]:
        known = {"object": (*THINGS, NONE), "style": tuple(WORDS), "flag": ("France", NONE), "mark": ("plain", "marked")}
        return known[self.head]

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        apart = torch.cdist(self.features(images), self.features(drawings().flatten(0, 1)), p=1) / 192
        near, at = apart.min(1)
        nothing = {"object": len(THINGS), "flag": 1, "mark": 0}
        said = {"object": at % 5, "style": at // 5}.get(self.head, torch.full_like(at, nothing.get(self.head, 0)))
        out = torch.full((len(images), len(self.classes)), 0.1 / (len(self.classes) - 1))
        for i, k in enumerate(said.tolist()):
            unseen = self.classes[k] in self.never or near[i] > 0.02
            if unseen and self.head == "style":
                out[i] = 1 / 8
            else:
                out[i, nothing[self.head] if unseen else k] = 0.9
        return out

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(images.float() / 255, 8).flatten(1)


def copies(never: tuple[str, ...] = ()) -> list[dict[str, PixelJudge]]:
    """Two copies; the second does not see `never`."""
    heads = ("object", "style", "flag", "mark")
    return [{h: PixelJudge(h, "A") for h in heads}, {h: PixelJudge(h, "B", never=never) for h in heads}]
