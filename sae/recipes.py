"""One call from a host and a corpus to trained SAEs: what `efface train` and the demonstration do."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..base.errors import InputError
from .config import SAEConfig, TrainConfig
from .sources import ActivationSource, HostSource
from .sources.host import Harvestable, HasReaders, Texts
from .trainer import train, train_many

if TYPE_CHECKING:
    from .sae import SAE

Side = Literal["train", "held_out"]
EXPANSION = 8
"""Default width: features a dimension of the hook point."""


def train_on_host(
    host: Harvestable | HasReaders,
    texts: Texts,
    hook_points: Sequence[str],
    out: Path,
    *,
    architecture: str = "topk",
    d_sae: int | None = None,
    k: int = 32,
    config: TrainConfig | None = None,
    resume: bool = False,
    context: int = 128,
    positions: str | None = None,
) -> "dict[str, SAE]":
    """Trains one autoencoder a hook point in a single pass of the host.

    One hook point: `out` is the SAE folder; several: `out/<hook point>`. One document in twenty is held out and measures the saved files.

    Args:
        host: Where the activations come from; of a pipeline the text encoder that the hook points name.
        texts: A corpus, a list of texts, or a function that returns texts.
        hook_points: Where to train.
        out: Output folder.
        architecture: Of every SAE.
        d_sae: Features; default eight times the width of the hook point.
        k: Active features a vector.
        config: How to train.
        resume: Go on from the newest checkpoint in `out`.
        context: Most tokens of a window of text.
        positions: Pipelines: which positions of a prompt are trained on, see `t2i.text.TextReader`; None: `padded`, all but BOS.

    Raises:
        InputError: No hook point, one that the host does not have, or a config out of range.
    """
    config = config or TrainConfig(tokens=1_000_000)
    if not hook_points:
        raise InputError("no hook point given; name one such as layers.10.mlp_out")
    widths = {point: host.resolve(point).d for point in hook_points}  # pyright: ignore[reportAttributeAccessIssue]  # hosts resolve; bare harvestables need not
    reader = host.reader(hook_points).covering(positions or "padded") if isinstance(host, HasReaders) else host
    if positions is not None and not isinstance(host, HasReaders):
        raise InputError("positions: for the text encoders of pipelines alone; language models leave out padding and special tokens")

    def source(part: Side, buffer: int) -> HostSource:
        return HostSource(reader, texts, hook_points, batch=config.batch, context=context, seed=config.seed, part=part, buffer=buffer)

    return train_on(source, widths, out, architecture=architecture, d_sae=d_sae, k=k, config=config, resume=resume)


def train_on(
    source: Callable[[Side, int], ActivationSource],
    widths: Mapping[str, int],
    out: Path,
    *,
    architecture: str,
    d_sae: int | None,
    k: int,
    config: TrainConfig,
    resume: bool,
) -> "dict[str, SAE]":
    """`train_on_host` for any source.

    Args:
        source: (side of the corpus, vectors in its buffer) -> a source of batches of `config.batch`.
        widths: Hook point -> width.
        out: As there, like the others.
        architecture: Of every SAE.
        d_sae: Features.
        k: Active features a vector.
        config: How to train.
        resume: Go on from the newest checkpoint.
    """
    cfgs = {p: SAEConfig(architecture, d_in=d, d_sae=d_sae or EXPANSION * d, k=k) for p, d in widths.items()}
    buffer = max(min(2**16, config.n_steps * config.batch // 4), 2 * config.batch)
    own, held_out = source("train", buffer), source("held_out", buffer)
    if len(cfgs) > 1:
        return train_many(cfgs, own, config, out=out, resume=resume, held_out=held_out)
    point, cfg = next(iter(cfgs.items()))
    return {point: train(cfg, own, config, out=out, resume=resume, held_out=held_out)}
