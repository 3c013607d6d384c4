"""The judges' two trunks and their heads."""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .recipe import JudgeRecipe


class Residual(nn.Module):
    """x + conv(gelu(norm(x))), 3 x 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """One block."""
        return x + self.conv(F.gelu(self.norm(x)))


class ResidualTrunk(nn.Module):
    """Pixels in 4 x 4 blocks, then three resolutions of residual convolutions, then the mean over places."""

    def __init__(self, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        a, b, c = widths
        self.width = c
        self.body = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, a, 3, padding=1), nn.BatchNorm2d(a), nn.GELU(),
            nn.Conv2d(a, b, 2, 2), *(Residual(b) for _ in range(depth)),
            nn.Conv2d(b, c, 2, 2), Residual(c), nn.BatchNorm2d(c), nn.GELU(),
        ).to(memory_format=torch.channels_last)  # fmt: skip

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Features."""
        return self.body(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))


class MixerLayer(nn.Module):
    """Mixes over patches, then over channels (Tolstikhin et al., MLP-Mixer, 2021, Eq. 1)."""

    def __init__(self, patches: int, width: int, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm_tokens, self.norm_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(patches, tokens), nn.GELU(), nn.Linear(tokens, patches))
        self.channels = nn.Sequential(nn.Linear(width, channels), nn.GELU(), nn.Linear(channels, width))

    def forward(self, x: Float[Tensor, "n patches width"]) -> Float[Tensor, "n patches width"]:
        """One layer."""
        x = x + self.tokens(self.norm_tokens(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm_channels(x))


class MixerTrunk(nn.Module):
    """8 x 8 patches, each through two linear layers, then mixer layers, then the mean over patches."""

    def __init__(self, widths: Sequence[int], depth: int, side: int = 64) -> None:
        super().__init__()
        self.width, tokens, channels = widths
        patches = (side // 8) ** 2
        self.embed = nn.Sequential(nn.Linear(192, self.width), nn.GELU(), nn.Linear(self.width, self.width))
        self.layers = nn.Sequential(*(MixerLayer(patches, self.width, tokens, channels) for _ in range(depth)))
        self.norm = nn.LayerNorm(self.width)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Features."""
        patches = rearrange(x, "n c (a h) (b w) -> n (a b) (c h w)", h=8, w=8)
        return self.norm(self.layers(self.embed(patches))).mean(1)


class JudgeNet(nn.Module):
    """A trunk and one linear head a question."""

    def __init__(self, recipe: JudgeRecipe, classes: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        trunk = ResidualTrunk if recipe.architecture == "residual" else MixerTrunk
        self.trunk = trunk(recipe.widths, recipe.depth)
        self.heads = nn.ModuleDict({head: nn.Linear(self.trunk.width, len(names)) for head, names in classes.items()})

    def features(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Penultimate activations of pictures in [0, 1]."""
        return self.trunk(2 * x - 1)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> dict[str, Float[Tensor, "n _"]]:
        """Head -> logits."""
        found = self.features(x)
        return {head: layer(found) for head, layer in self.heads.items()}


@torch.no_grad()
def settle(net: JudgeNet, batches: Iterable[Float[Tensor, "n 3 h w"]]) -> None:
    """Sets the means and variances that batch norms use when judging, as the average over batches; leaves `net` in `eval`.

    Needed after the weights were replaced by their moving average. A net without batch norms is left as it is.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    net.train()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # plain average
    for x in batches if norms else ():
        net(x)
    net.eval()
