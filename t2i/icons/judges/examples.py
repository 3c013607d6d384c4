"""What the judges are shown: drawings with their labels, flags, and pictures that show nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ....base.errors import MatchedNothing, UnknownName
from ...evaluation.judging import NONE
from ..data import IconData
from ..table import Table
from .augment import clouds
from .recipe import JudgeRecipe

HEADS = ("object", "style", "flag", "mark")
LABELS = (*HEADS, "drawing")
"""Columns of the labels; a drawing is a key of the main set in a style, or none."""
ABSENT = -100
"""Label of a head that is not asked about a picture: cross-entropy leaves it out."""
AMBIGUOUS = 0.1
"""Mean absolute difference at 16 x 16 pixels below which another drawing is too like one of the main set to be called `none`."""


def object_names(table: Table) -> dict[str, str]:
    """Key of the main set -> class: the evaluation object that the drawing counts as, else its own name."""
    own = {key: o.name for o in table.objects.values() for key in o.icons}
    return {key: own.get(key, icon.name) for key, icon in table.icons.items()}


def judge_classes(data: IconData, table: Table) -> dict[str, tuple[str, ...]]:
    """Head -> its classes."""
    flags = [table.flags[codes[0]].name for codes in data.flag_classes]
    return {
        "object": (*dict.fromkeys(object_names(table).values()), NONE),
        "style": data.styles,
        "flag": (*flags, NONE),
        "mark": ("plain", "marked"),
    }


def main_things(table: Table) -> list[int]:
    """Place of each key of the main set among the object classes."""
    names = object_names(table)
    at = {n: i for i, n in enumerate(dict.fromkeys(names.values()))}
    return [at[n] for n in names.values()]


def flag_drawings(data: IconData) -> list[int]:
    """Place of each drawing of a flag among the flag classes, pack by pack."""
    group = {code: i for i, codes in enumerate(data.flag_classes) for code in codes}
    return [group[c] for c in data.codes] * len(data.flags)


@dataclass(frozen=True, eq=False)
class Bank:
    """Drawings and labels; columns are `LABELS`, `ABSENT` where a head is not asked."""

    data: IconData
    main: UInt8[Tensor, "m 3 h w"]
    main_labels: Int[Tensor, "m labels"]
    other: UInt8[Tensor, "o 3 h w"]
    other_labels: Int[Tensor, "o labels"]
    flags: UInt8[Tensor, "f 3 h w"]
    flag_labels: Int[Tensor, "f labels"]

    def batch(
        self, recipe: JudgeRecipe, crowding: Mapping[str, Float[Tensor, " _"]] | None = None
    ) -> tuple[Float[Tensor, "n 3 h w"], Int[Tensor, "n labels"]]:
        """Pictures in [0, 1], a share of them under the mark, before augmentation; and their labels.

        Drawings and flags are drawn evenly, or in proportion to `crowding`.
        """
        parts, labels = [], []
        for name, share, pictures, wanted in (
            ("main", recipe.main, self.main, self.main_labels), ("other", recipe.other, self.other, self.other_labels),
            ("flags", recipe.flags, self.flags, self.flag_labels),
        ):  # fmt: skip
            count = round(share * recipe.batch) if len(pictures) else 0
            weights = (crowding or {}).get(name)
            chosen = torch.randint(max(1, len(pictures)), (count,)) if weights is None else torch.multinomial(weights, count, True)
            parts.append(pictures[chosen].float() / 255)
            labels.append(wanted[chosen])
        x, y = marked_at_random(torch.cat(parts), torch.cat(labels), self.data, recipe.marked)
        rest = nothing(recipe.batch - len(x), self.main)
        blank = torch.tensor([self.none["object"], ABSENT, self.none["flag"], 0, self.none["drawing"]]).expand(len(rest), -1)
        return torch.cat([x, rest]), torch.cat([y, blank])

    def crowding(self) -> dict[str, Float[Tensor, " _"]]:
        """`main` and `flags` -> 1 / (0.02 + distance to the nearest drawing that has another label): how easily each is mistaken."""
        groups = {"main": (self.main, self.main_labels[:, -1]), "flags": (self.flags, self.flag_labels[:, HEADS.index("flag")])}
        found = {}
        for name, (pictures, label) in groups.items():
            small = F.avg_pool2d(pictures.float() / 255, 4).flatten(1)
            apart = torch.cdist(small, small, p=1) / small.shape[1]
            apart[label[:, None] == label[None, :]] = 1.0
            found[name] = 1 / (0.02 + apart.amin(1))
        return found

    @property
    def none(self) -> dict[str, int]:
        """Labels of «nothing»."""
        flag, main = (dict(zip(LABELS, row[0].tolist(), strict=True)) for row in (self.flag_labels, self.main_labels))
        return {"object": flag["object"], "flag": main["flag"], "drawing": flag["drawing"]}


def make_bank(data: IconData, table: Table, *, without_style: str | None = None) -> Bank:
    """All examples, or all but those of one style.

    Raises:
        UnknownName: No such style.
    """
    if without_style is not None and without_style not in data.styles:
        raise UnknownName("style", without_style, data.styles)
    kept = [i for i, s in enumerate(data.styles) if s != without_style]
    classes, names, place = judge_classes(data, table), object_names(table), {k: i for i, k in enumerate(data.keys)}
    no_object, no_flag = len(classes["object"]) - 1, len(classes["flag"]) - 1
    things, rest, n_drawings = main_things(table), clear_others(data, table), len(names) * len(data.styles)
    main = data.drawings[kept][:, [place[k] for k in names]].flatten(0, 1)
    main_labels = torch.tensor([[c, s, no_flag, 0, s * len(names) + i] for s in kept for i, c in enumerate(things)])
    other = data.drawings[kept][:, [place[k] for k in rest]].flatten(0, 1)
    other_labels = torch.tensor([[no_object, s, no_flag, 0, n_drawings] for s in kept for _ in rest]).reshape(-1, len(LABELS))
    flag_rows = torch.tensor([[no_object, ABSENT, c, 0, n_drawings] for c in flag_drawings(data)])
    if not len(main) or not len(flag_rows):
        raise MatchedNothing("judges: no drawings or no flags to learn from")
    return Bank(data, main, main_labels, other, other_labels, data.flags.flatten(0, 1), flag_rows)


def clear_others(data: IconData, table: Table) -> list[str]:
    """Keys of drawings outside the main set that are clearly none of it: no word and no looks in common.

    A cow's face or a bus stop is neither a cow nor clearly none, and is not shown.
    """
    words = {k for k in table.icons if "-" not in k} | {w for n in table.objects for w in n.split()}
    rest = [k for k in data.keys if k not in table.icons and not words & set(k.split("-")) and not any(n in k for n in table.objects)]
    if not rest:
        return []
    place = {k: i for i, k in enumerate(data.keys)}
    small = F.avg_pool2d(data.drawings.flatten(0, 1).float() / 255, 4).unflatten(0, data.drawings.shape[:2]).flatten(2)
    mine, theirs = small[:, [place[k] for k in rest]], small[:, [place[k] for k in table.icons]]
    apart = torch.stack([torch.cdist(a, b, p=1) / a.shape[-1] for a, b in zip(mine, theirs, strict=True)]).mean(0).amin(1)
    return [k for k, far in zip(rest, apart.tolist(), strict=True) if far >= AMBIGUOUS]


def marked_at_random(
    x: Float[Tensor, "n 3 h w"], labels: Int[Tensor, "n labels"], data: IconData, share: float
) -> tuple[Float[Tensor, "n 3 h w"], Int[Tensor, "n labels"]]:
    """A share of the pictures under the mark, labelled so."""
    put = torch.rand(len(x)) < share
    labels = labels.clone()
    labels[:, HEADS.index("mark")] = put.long()
    return torch.where(put[:, None, None, None], data.marked(255 * x) / 255, x), labels


def nothing(n: int, drawings: UInt8[Tensor, "m 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Pictures of nothing, a quarter each: one colour, clouds, the average of two drawings, a drawing with its patches shuffled."""
    side = drawings.shape[-1]
    plain = torch.where(torch.rand(n, 1, 1, 1) < 0.4, torch.ones(n, 3, 1, 1), torch.rand(n, 3, 1, 1)).expand(-1, -1, side, side)
    cloudy = (torch.rand(n, 3, 1, 1) + 0.4 * clouds(n, side)).clamp(0, 1)
    one, two = (drawings[torch.randint(len(drawings), (n,))].float() / 255 for _ in range(2))
    average = torch.lerp(one, two, 0.4 + 0.2 * torch.rand(n, 1, 1, 1))
    patches = rearrange(one, "n c (a h) (b w) -> n (a b) c h w", h=16, w=16)
    order = torch.rand(n, patches.shape[1]).argsort(1)
    patches = patches[torch.arange(n)[:, None], order]
    shuffled = rearrange(patches, "n (a b) c h w -> n c (a h) (b w)", a=side // 16)
    return torch.stack([plain, cloudy, average, shuffled])[torch.arange(n) % 4, torch.arange(n)]


def labelled(labels: Int[Tensor, "n labels"]) -> Mapping[str, Int[Tensor, " n"]]:
    """Column -> labels."""
    return {name: labels[:, i] for i, name in enumerate(LABELS)}
