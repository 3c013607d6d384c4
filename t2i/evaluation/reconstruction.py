"""How faithful an SAE of a text encoder is to what is drawn: by token class, at the encoder's end, and in pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...base.errors import MatchedNothing
from ...base.running import progress
from ...deactivate.edit import Edit
from ...deactivate.layer import DeactivationPart, sae_hook_point
from .judging import Judge

if TYPE_CHECKING:
    from ...sae import SAE
    from ..host import ImageHost


@torch.no_grad()
def fvu_by_class(host: "ImageHost", sae: "SAE", prompts: Sequence[str], batch: int = 64) -> dict[str, float]:
    """Fraction of variance unexplained of the prompts' own tokens (`own`), of EOS (`eos`) and of padding (`padding`).

    Each class against its own mean. Classes that do not vary, or that the encoder does not have, are left out.

    Raises:
        MatchedNothing: No prompts.
    """
    if not prompts:
        raise MatchedNothing("fvu_by_class: no prompts")
    point = sae_hook_point(sae)
    reader = host.reader([point])
    eos = reader.tokenizer.eos_token_id
    seen: dict[str, list[Tensor]] = {"own": [], "eos": [], "padding": []}
    rows = reader.token_ids(prompts)
    for start in range(0, len(rows), batch):
        ids, mask = reader.pad(rows[start : start + batch])
        x = reader.activations(ids, mask, [point])[point].cpu()
        keep = reader.keep_mask(ids, mask)
        last = mask.cumsum(1).eq(mask.sum(1, keepdim=True)) & mask.bool() & (ids == eos)
        for name, where in (("own", keep & ~last), ("eos", last), ("padding", ~mask.bool())):
            seen[name].append(x[where])
    out = {}
    for name, parts in seen.items():
        x = torch.cat(parts)
        total = float((x - x.mean(0)).double().square().sum()) if len(x) else 0.0
        if total > 0:
            out[name] = float((sae(x) - x).double().square().sum()) / total
    return out


def reconstructing(sae: "SAE") -> Edit:
    """An edit that puts the SAE's reconstruction in the stream's place and changes nothing else; prompts alone, never the negative one."""
    return Edit([DeactivationPart(sae, (0,), 1.0, "scale", keep_error=False, spare_first=True)], "reconstruction")


@torch.no_grad()
def embedding_drift(host: "ImageHost", sae: "SAE", prompts: Sequence[str], batch: int = 64) -> float:
    """Mean over prompts of |y' - y| / |y|, y what the denoiser reads of the prompt, y' with the reconstruction in the stream's place."""
    total = 0.0
    for start in progress(range(0, len(prompts), batch), desc="reconstructing", unit="batch", inner=True):
        part = list(prompts[start : start + batch])
        base = host.encode(part).embeds
        with reconstructing(sae).applied(host):
            moved = host.encode(part).embeds
        total += float(((moved - base).flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1)).sum())
    return total / len(prompts)


@torch.no_grad()
def image_drift(host: "ImageHost", sae: "SAE", prompts: Sequence[str], judge: Judge, seed: int = 0, **options: Any) -> dict[str, float]:
    """How far pictures move when the reconstruction replaces the stream, in the judge's penultimate features.

    Args:
        host: Draws.
        sae: At one of its text encoders.
        prompts: At least two.
        judge: Whose features.
        seed: Of the first picture.
        **options: Of `generate`.

    Returns:
        `reconstruction`: mean distance of a prompt's pictures with and without; `other_noise`: of two pictures of the same prompt
        with other noise; both over the mean distance of pictures of different prompts.
    """
    if len(prompts) < 2:
        raise MatchedNothing("image_drift: at least two prompts expected")
    base = host.generate(prompts, seed=seed, **options)
    again = host.generate(prompts, seed=seed + len(prompts), **options)
    with reconstructing(sae).applied(host):
        moved = host.generate(prompts, seed=seed, **options)
    x, y, z = (judge.features(p).double() for p in (base, moved, again))
    apart = float(torch.cdist(x, x).sum()) / (len(x) * (len(x) - 1))
    return {"reconstruction": float((x - y).norm(dim=1).mean()) / apart, "other_noise": float((x - z).norm(dim=1).mean()) / apart}
