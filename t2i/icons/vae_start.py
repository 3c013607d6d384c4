"""A start for the autoencoder in which a picture's colours already pass: the mean colour of each 8 x 8 cell, in and out.

The group norms before the last convolutions take a picture's own mean and contrast away, and with them what tells a green pear from an
orange one; from an ordinary start that is learnt last. Here three channels carry the colours past every residual branch, and beside them
stand constant ones that dominate their group's statistics, so that the norms leave the colours as they are. All of it can be trained.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...base.errors import InputError

LARGE, SHIFT = 2.0, 3.0
"""Size of the constant channels; where on SiLU the colours are put: up there it is a straight line."""


@torch.no_grad()
def carry_colours(vae: Any) -> Any:
    """Sets the weights along the way of an untrained `AutoencoderKL` in place, and returns it.

    Latents 0 to 2 are then a cell's mean red, green and blue in [-1, 1], nearly, and a picture is decoded as its cells' mean colours.

    Raises:
        InputError: Groups of less than three channels before the last norms, or no change of width in the last blocks.
    """
    encoder, decoder = vae.encoder, vae.decoder
    for half, block in ((encoder, encoder.down_blocks[-1]), (decoder, decoder.up_blocks[-1])):
        norm = half.conv_norm_out
        if norm.num_groups < 3 or norm.num_channels // norm.num_groups < 3 or block.resnets[0].conv_shortcut is None:
            raise InputError(
                "carry: colours pass norms of three groups or more, of three channels or more each, and last blocks that change their width; "
                f"found {norm.num_channels} channels in {norm.num_groups} groups. Set carry=False, or other groups or channels"
            )
    _pass(encoder.conv_in)
    for block in encoder.down_blocks:
        for r in block.resnets:
            _resnet(r)
        for d in block.downsamplers or ():
            _pass(d.conv, mean=True)
    _middle(encoder.mid_block)
    wide = encoder.conv_norm_out.num_channels // encoder.conv_norm_out.num_groups
    places = [i * wide for i in range(3)]
    _spread(encoder.down_blocks[-1].resnets[0], places)
    for r in (*encoder.down_blocks[-1].resnets[1:], *encoder.mid_block.resnets):
        _quiet(r.conv2, range(3 * wide))
    for a in encoder.mid_block.attentions:
        _quiet(a.to_out[0], range(3 * wide))
    _out(encoder.conv_norm_out, encoder.conv_out, places)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _pass(conv)
    vae.quant_conv.weight[len(vae.quant_conv.weight) // 2 :] = 0
    vae.quant_conv.bias[len(vae.quant_conv.bias) // 2 :] = -6.0  # log-variances: little noise at first
    _pass(decoder.conv_in)
    _middle(decoder.mid_block)
    for block in decoder.up_blocks:
        for r in block.resnets:
            _resnet(r)
        for u in block.upsamplers or ():
            _pass(u.conv)
    wide = decoder.conv_norm_out.num_channels // decoder.conv_norm_out.num_groups
    places = [i * wide for i in range(3)]
    _spread(decoder.up_blocks[-1].resnets[0], places)
    for r in decoder.up_blocks[-1].resnets[1:]:
        _quiet(r.conv2, range(3 * wide))
    _out(decoder.conv_norm_out, decoder.conv_out, places)
    return vae


def _pass(conv: nn.Conv2d, mean: bool = False) -> None:
    """Channels 0 to 2 leave as they came; with `mean` as the mean of the four pixels that become one."""
    conv.weight[:3] = 0
    for i in range(3):
        if mean:
            conv.weight[i, i, :2, :2] = 0.25
        else:
            conv.weight[i, i, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    assert conv.bias is not None
    conv.bias[:3] = 0


def _quiet(layer: Any, rows: Any) -> None:
    layer.weight[list(rows)] = 0
    layer.bias[list(rows)] = 0


def _resnet(r: Any) -> None:
    _quiet(r.conv2, range(3))
    if r.conv_shortcut is not None:
        _pass(r.conv_shortcut)


def _middle(block: Any) -> None:
    for r in block.resnets:
        _resnet(r)
    for a in block.attentions:
        _quiet(a.to_out[0], range(3))


def _spread(r: Any, places: list[int]) -> None:
    """The colours to a group each of the channels that a norm will meet, a constant above and one below in the two places behind."""
    shortcut = r.conv_shortcut
    wide = places[1]
    _quiet(r.conv2, range(3 * wide))
    _quiet(shortcut, range(3 * wide))
    for i, at in enumerate(places):
        shortcut.weight[at, i, 0, 0] = 1
        shortcut.bias[at + 1], shortcut.bias[at + 2] = LARGE, -LARGE


def _out(norm: Any, conv: Any, places: list[int]) -> None:
    """Reads the colours behind the norm: their channels less the constant beside them, in the straight part of SiLU."""
    wide = places[1]
    spread = LARGE * (2 / wide) ** 0.5
    conv.weight[:] = 0
    for i, at in enumerate(places):
        norm.weight[at : at + 2], norm.bias[at : at + 2] = spread, SHIFT
        centre: Tensor = conv.weight[i, :, 1, 1]
        centre[at], centre[at + 1] = 1, -1
        conv.bias[i] = LARGE
