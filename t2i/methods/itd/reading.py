"""What an SAE's features do in prompts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ....base.errors import InputError
from ....base.running import progress
from ....deactivate.layer import sae_hook_point
from ....sae.sparse import SparseActs
from .selection import prompt_peaks

if TYPE_CHECKING:
    from ....sae import SAE
    from ...host import ImageHost


@torch.no_grad()
def read_peaks(host: "ImageHost", sae: "SAE", prompts: Sequence[str], batch: int = 64) -> SparseActs:
    """Largest activation of every feature in each prompt, over its own tokens and EOS (BOS and padding left out).

    Prompts of like lengths are read together, without the padding behind them where that changes nothing (`TextReader.pad`).

    Raises:
        InputError: No prompts, or one that is too long.
    """
    point = sae_hook_point(sae)
    reader = host.reader([point])
    rows = reader.token_ids(prompts)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = []
    for start in progress(range(0, len(rows), batch), desc="reading prompts", unit="batch", inner=True):
        ids, mask = reader.pad([rows[i] for i in order[start : start + batch]], trim=True)
        keep = reader.keep_mask(ids, mask)
        x = reader.activations(ids, mask, [point])[point][keep.to(host.device)]
        acts = sae.encode_sparse(x.to(sae.W_dec.device, sae.W_dec.dtype))
        parts.append(prompt_peaks(acts, keep.nonzero()[:, 0], len(ids)))
    return SparseActs.cat(parts).select_rows(torch.tensor(order).argsort())


def one_reader(host: "ImageHost", saes: Sequence["SAE"]) -> None:
    """Raises unless each SAE stands at a text encoder, one an encoder."""
    parts = [host.reader([sae_hook_point(s)]).part for s in saes]
    if len(set(parts)) < len(parts):
        raise InputError(f"one an encoder: there are several SAEs at {max(parts, key=parts.count)}")
