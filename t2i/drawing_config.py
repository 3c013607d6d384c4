"""How pictures are drawn while a denoiser is read. Torch-free: the command line builds it before anything is loaded."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..base.errors import InputError, UnknownName


@dataclass(frozen=True)
class DrawingConfig:
    """Which calls of the denoiser are read, and which of their rows."""

    denoise_steps: int = 50
    """Denoising steps of the sampler."""
    collect: tuple[int, ...] = ()
    """Which of them are read, 0 the noisiest; empty: all."""
    guidance: float | None = None
    """Guidance scale; unset: the pipeline's own. At 1 or below there is no half for the negative prompt."""
    halves: Literal["both", "conditional"] = "both"
    """Rows read of a guided batch: those of the negative prompt too, or those of the prompts alone."""
    negative: str = ""
    """The negative prompt."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; unset: the pipeline's own."""
    pictures: int = 8
    """Pictures drawn at a time. The vectors of one such drawing are what is held in memory, besides the mixing buffer."""

    def __post_init__(self) -> None:
        for name in ("denoise_steps", "pictures"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; found {getattr(self, name)}")
        if self.halves not in ("both", "conditional"):
            raise UnknownName("halves", self.halves, ("both", "conditional"))
        odd = [i for i in self.collect if not 0 <= i < self.denoise_steps]
        if odd or len(set(self.collect)) < len(self.collect):
            raise InputError(
                f"collect: different steps of 0 to {self.denoise_steps - 1} expected (denoise_steps); found {list(self.collect)}"
            )
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"size: height and width of at least 1 expected; found {list(self.size)}")

    def policy(self) -> dict[str, Any]:
        """Plain values for an SAE's card; all that changes what is read, so not `pictures`."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in values.items() if k != "pictures"}
