"""The judges' two trunks and their heads."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .discriminant import Discriminant
from .recipe import JudgeRecipe


class Residual(nn.Module):
    """x + conv(gelu(norm(x))), 3 x 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """One block."""
        return x + self.conv(F.gelu(self.norm(x)))


class ConvolutionsTrunk(nn.Module):
    """Pixels in 4 x 4 blocks, residual convolutions at 8 x 8 and 4 x 4; read out with their places, and as means over places."""

    def __init__(self, widths: Sequence[int], depth: int, side: int = 64) -> None:
        super().__init__()
        a, b, c, out = widths
        self.width = out + c
        body: Any = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, a, 1), nn.BatchNorm2d(a), nn.GELU(),
            nn.Conv2d(a, b, 2, 2), *(Residual(b) for _ in range(depth)),
            nn.Conv2d(b, c, 2, 2), Residual(c), nn.BatchNorm2d(c), nn.GELU(),
        )  # fmt: skip
        self.body = body.to(memory_format=torch.channels_last)
        self.readout = nn.Sequential(nn.Linear(c * (side // 16) ** 2, out), nn.BatchNorm1d(out), nn.GELU())

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Features."""
        found = self.body(x.contiguous(memory_format=torch.channels_last))
        return torch.cat([self.readout(found.flatten(1)), found.mean((2, 3))], 1)


class ResidualLayer(nn.Module):
    """x + linear(gelu(norm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """One layer."""
        return x + self.linear(F.gelu(self.norm(x)))


class PixelsTrunk(nn.Module):
    """The picture at half its size as one vector, through residual layers: no convolution, no patches."""

    def __init__(self, widths: Sequence[int], depth: int, side: int = 64) -> None:
        super().__init__()
        (self.width,) = widths
        first = nn.Linear(3 * (side // 2) ** 2, self.width)
        self.body = nn.Sequential(first, *(ResidualLayer(self.width) for _ in range(depth)), nn.BatchNorm1d(self.width), nn.GELU())

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Features."""
        return self.body(F.avg_pool2d(x, 2).flatten(1))


class JudgeNet(nn.Module):
    """A trunk and linear heads: which drawing it is, if any; style by looks alone; flag; mark.

    Object and style are read off the drawing: P(object) is the sum over its drawings, P(style) the sum over the drawings of a style plus
    P(no drawing) x style by looks, so that the style of something never seen is judged too.

    Args:
        recipe: Of the trunk.
        classes: Head -> class list (`object`, `style`, `flag`, `mark`); the last object is `none`.
        things: Place in `classes["object"]` of each key of the main set; a drawing is a key in a style, style by style.
        flags: Place in `classes["flag"]` of each drawing of a flag, where the recipe has a discriminant.
    """

    object_of: Tensor
    style_of: Tensor
    flag_of: Tensor

    def __init__(
        self, recipe: JudgeRecipe, classes: Mapping[str, Sequence[str]], things: Sequence[int], flags: Sequence[int] = ()
    ) -> None:  # fmt: skip
        super().__init__()
        trunk = ConvolutionsTrunk if recipe.architecture == "convolutions" else PixelsTrunk
        self.trunk = trunk(recipe.widths, recipe.depth)
        self.n_objects, self.n_styles = len(classes["object"]), len(classes["style"])
        self.register_buffer("object_of", torch.tensor([*things] * self.n_styles + [self.n_objects - 1]), persistent=False)
        self.register_buffer("style_of", torch.arange(self.n_styles).repeat_interleave(len(things)), persistent=False)
        sizes = {"drawing": len(self.object_of), **{head: len(classes[head]) for head in ("style", "flag", "mark")}}
        self.register_buffer("flag_of", torch.tensor([*flags], dtype=torch.long), persistent=False)
        self.trust, n_drawings = (recipe.trust, recipe.trust_flags), len(self.style_of) + len(flags)
        self.discriminant = Discriminant(n_drawings, recipe.rank) if recipe.rank else None
        self.heads = nn.ModuleDict({head: nn.Linear(self.trunk.width, n) for head, n in sizes.items()})

    def features(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Penultimate activations of pictures in [0, 1]."""
        return self.trunk(2 * x - 1)

    def logits(self, x: Float[Tensor, "n 3 h w"]) -> dict[str, Float[Tensor, "n _"]]:
        """`drawing` (the last is none), `style` by looks, `flag`, `mark`."""
        found = self.features(x)
        return {head: layer(found) for head, layer in self.heads.items()}

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> dict[str, Float[Tensor, "n _"]]:
        """Head -> probabilities."""
        return self.probabilities(self.advised(x, self.logits(x)))

    def advised(self, x: Float[Tensor, "n 3 h w"], logits: Mapping[str, Float[Tensor, "n _"]]) -> dict[str, Float[Tensor, "n _"]]:
        """Logits with the discriminant's opinion on which drawing or flag it is; whether it is one at all stays the network's."""
        if self.discriminant is None:
            return dict(logits)
        drawing, flag = self.discriminant(x).split([len(self.style_of), len(self.flag_of)], 1)
        drawing, flag = self.trust[0] * drawing, self.trust[1] * flag
        flags = flag.new_zeros(len(x), logits["flag"].shape[1] - 1).index_add(1, self.flag_of, flag.softmax(1))
        return {
            **logits,
            "drawing": with_opinion(logits["drawing"], drawing),
            "flag": with_opinion(logits["flag"], flags.clamp(min=1e-30).log()),
        }

    def probabilities(self, logits: Mapping[str, Float[Tensor, "n _"]]) -> dict[str, Float[Tensor, "n _"]]:
        """Head (`object`, `style`, `flag`, `mark`) -> probabilities."""
        drawing = logits["drawing"].softmax(1)
        objects = drawing.new_zeros(len(drawing), self.n_objects).index_add(1, self.object_of, drawing)
        styles = drawing.new_zeros(len(drawing), self.n_styles).index_add(1, self.style_of, drawing[:, :-1])
        styles = styles + drawing[:, -1:] * logits["style"].softmax(1)
        return {"object": objects, "style": styles, "flag": logits["flag"].softmax(1), "mark": logits["mark"].softmax(1)}


def with_opinion(logits: Float[Tensor, "n classes"], opinion: Float[Tensor, "n _"]) -> Float[Tensor, "n classes"]:
    """`opinion` on all classes but the last, which is `none`, added to theirs; its odds against all of them together stay."""
    some = logits[:, :-1]
    return torch.cat([(some + opinion).log_softmax(1) + some.logsumexp(1, keepdim=True), logits[:, -1:]], 1)


@torch.no_grad()
def settle(net: JudgeNet, batches: Iterable[Float[Tensor, "n 3 h w"]]) -> None:
    """Sets the means and variances that batch norms use when judging, as the average over batches; leaves `net` in `eval`.

    Needed after the weights were replaced by their moving average. A net without batch norms is left as it is.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    net.train()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # plain average
    for x in batches if norms else ():
        net(x)
    net.eval()
