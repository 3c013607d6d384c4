"""From concepts to labelled vectors: class 0 is everything else, class i the i-th concept."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...base.errors import InputError, MatchedNothing
from ...base.running import progress
from ..hosts import general_texts
from .config import LinearErasure

if TYPE_CHECKING:
    from ..concept import Concept
    from ..hosts import Host


@dataclass(frozen=True)
class Texts:
    """Lines and the class of each."""

    lines: list[str]
    classes: list[int]


def labelled(
    host: "Host", concepts: Sequence["Concept"], preserve: Sequence[str] | None, split: str, config: LinearErasure
) -> Texts:  # fmt: skip
    """Each concept's target texts, and as many at most of all else: `preserve`, or neighbours (half of them at most) and general texts.

    Raises:
        InputError: A concept has no such texts in the split; or a single string in the place of `preserve`.
        MatchedNothing: Nothing stands for the rest.
    """
    if isinstance(preserve, str):
        raise InputError(f"preserve must be a list of texts; found {preserve!r}")
    targets = [_some(c.require("target", split), config.texts, config.seed) for c in concepts]
    own = {t for c in concepts for lines in c.target.values() for t in lines}
    if preserve:
        rest = _some([t for t in preserve if t not in own], config.texts, config.seed)
    else:
        near = [t for c in concepts for t in c.neighbours.get(split, ()) if t not in own]
        general = [t for t in dict.fromkeys(t for c in concepts for t in general_texts(host, c, split)) if t not in own]
        rest = _some(near, max(1, config.texts // 2) if general else config.texts, config.seed)
        rest += _some(general, config.texts - len(rest), config.seed)
    if not rest:
        raise MatchedNothing("linear erasers need texts without the concept: fill neighbours or general of its file, or give preserve")
    lines = [rest, *targets]
    return Texts([t for part in lines for t in part], [c for c, part in enumerate(lines) for _ in part])


def _some(lines: Sequence[str], limit: int, seed: int) -> list[str]:
    lines = list(dict.fromkeys(lines))
    if len(lines) <= limit:
        return lines
    return [lines[i] for i in sorted(random.Random(seed).sample(range(len(lines)), limit))]


def reader_of(host: "Host", point: str) -> Any:
    """What reads texts up to a hook point: a language host itself, the text encoder of a pipeline.

    Raises:
        HookPointNotFound: There is none.
        InputError: A hook point of a denoiser, which reads more than prompts.
    """
    host.resolve(point)
    reader = getattr(host, "reader", None)
    return host if reader is None else reader([point])


@torch.no_grad()
def vectors(host: "Host", texts: Texts, point: str, config: LinearErasure) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """What passes a hook point (float32, on the CPU) and the class of each vector; rewrites in force are seen.

    Raises:
        MatchedNothing: A class has no vector.
    """
    reader, found, classes = reader_of(host, point), [], []
    labels = torch.tensor(texts.classes)
    for i in progress(range(0, len(texts.lines), config.batch), desc=f"reading texts at {point}", unit="batch", inner=True):
        ids, mask = reader.encode_texts(texts.lines[i : i + config.batch], max_length=config.max_length)
        keep = reader.keep_mask(ids, mask).cpu()
        acts = reader.activations(ids, mask, [point])[point].float().cpu()
        own = labels[i : i + config.batch]
        if config.unit == "text":
            some = keep.any(1)
            share = keep[some, :, None].float()
            found.append((acts[some] * share).sum(1) / share.sum(1))
            classes.append(own[some])
        else:
            found.append(acts[keep])
            classes.append(own[:, None].expand_as(keep)[keep])
    x, y = torch.cat(found), torch.cat(classes)
    missing = sorted(set(texts.classes) - set(y.tolist()))
    if missing:
        raise MatchedNothing(f"{point}: no token of class {missing} counts (0 is all else); its texts hold nothing besides special tokens")
    return x, y


def points_of(host: "Host", config: LinearErasure) -> list[str]:
    """The hook points of the config, patterns filled in, in the order of the forward pass.

    Raises:
        HookPointNotFound: One matches none; names the nearest.
    """
    from fnmatch import fnmatchcase

    known = host.hook_points()
    if not config.at:
        ends = [p for p in known if p.endswith(".resid_post")]
        if not ends:
            raise InputError(f"{host.name} has no resid_post hook point to choose from: name one with --set at=…")
        return [ends[(len(ends) - 1) // 2]]
    found: set[str] = set()
    for pattern in config.at:
        matched = [p for p in known if fnmatchcase(p, pattern)]
        if not matched:
            host.resolve(pattern)  # raises, names the nearest
        found.update(matched)
    return [p for p in known if p in found]
