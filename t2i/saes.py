"""Whether an SAE belongs to a pipeline: its width, and the digest of the part that it was trained on."""

from typing import TYPE_CHECKING

from ..base.errors import InputError
from ..deactivate.layer import sae_hook_point, width_at
from ..llm.parameters import parameter_digest

if TYPE_CHECKING:
    from ..sae import SAE
    from .host import ImageHost


def in_denoiser(host: "ImageHost", hook_point: str) -> bool:
    """Whether a hook point lies in the denoiser.

    Raises:
        HookPointNotFound: There is no such hook point.
    """
    return host.resolve(hook_point).path.partition(".")[0] == host.family.denoiser


def part_digest(host: "ImageHost", hook_point: str) -> str:
    """sha256 over the parameters of the text encoder or of the denoiser that a hook point lies in: of no other part."""
    return parameter_digest(host.denoiser) if in_denoiser(host, hook_point) else host.reader([hook_point]).digest


def check_sae(host: "ImageHost", sae: "SAE") -> None:
    """Raises where an SAE was not trained on the part of this pipeline that its hook point names.

    Raises:
        HookPointNotFound: There is no such hook point.
        InputError: Another width, or another text encoder or denoiser by its digest.
    """
    point = sae_hook_point(sae)
    d = width_at(host, sae, point)
    if d != sae.cfg.d_in:
        raise InputError(f"SAE at {point}: d_in is {sae.cfg.d_in}, but {host.name} has width {d} there")
    trained_on = sae.card.get("model_digest")
    if trained_on and trained_on != part_digest(host, point):
        kind = host.family.denoiser if in_denoiser(host, point) else "text encoder"
        raise InputError(
            f"SAE at {point} was trained on another {kind} (of {sae.card.get('model', 'unnamed')}) than that of {host.name}, "
            "or on the same in another dtype or before an edit; train one on this host"
        )
