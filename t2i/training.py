"""SAEs on a denoiser: what `efface train` does where `--at` names one of its hook points."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sae.config import TrainConfig
from ..sae.recipes import Side, train_on
from ..sae.sources.host import Texts
from .denoising import DenoiserSource
from .drawing_config import DrawingConfig

if TYPE_CHECKING:
    from ..sae import SAE
    from .host import ImageHost


def train_on_denoiser(
    host: "ImageHost",
    prompts: Texts,
    hook_points: Sequence[str],
    out: Path,
    drawing: DrawingConfig,
    *,
    config: TrainConfig,
    architecture: str = "topk",
    d_sae: int | None = None,
    k: int = 32,
    resume: bool = False,
) -> "dict[str, SAE]":
    """Trains one autoencoder a hook point while pictures are drawn; folders and held-out prompts as in `sae.recipes.train_on_host`.

    Raises:
        HookPointNotFound: There is no such hook point.
        InputError: One of a text encoder, or a config out of range.
    """

    def source(part: Side, buffer: int) -> DenoiserSource:
        return DenoiserSource(host, prompts, hook_points, drawing, batch=config.batch, seed=config.seed, buffer=buffer, part=part)

    widths = {p: host.resolve(p).d for p in hook_points}
    size: dict[str, Any] = {"architecture": architecture, "d_sae": d_sae, "k": k}
    return train_on(source, widths, out, config=config, resume=resume, **size)
