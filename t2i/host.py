"""A text-to-image pipeline behind the host protocol: encoding, prediction, pictures, loss, weights, roles, hook points."""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from ..base.errors import HookPointNotFound, InputError, MatchedNothing
from ..llm.hooks import Fired, HookSite, Rewrite, rewritten
from ..llm.parameters import parameter_digest
from ..llm.tokens import TokenRoles, token_roles
from . import drawing as _drawing
from . import noise as _noise
from . import parameters as _parameters
from . import routing as _routing
from . import saes as _saes
from .adapters import family_of
from .components import parts_of
from .parameters import ROLES
from .states import Batch, States
from .text import TextReader

if TYPE_CHECKING:
    from ..deactivate.edit import Edit
    from ..deactivate.overlay import Overlay
    from ..sae import SAE

__all__ = ["ROLES", "Batch", "ImageHost", "States", "TokenRoles"]


class ImageHost:
    """A diffusers pipeline of a family that has an adapter: SD 1.x and 2.x, SDXL, SD 3, FLUX.

    The parts are put into eval mode. Methods follow the caller's gradient mode, except `generate`, which never builds a
    graph, and `activations`, which does only with `grad=True`.

    Args:
        pipeline: The pipeline; its parts stay those that it has now.
        name: What it is called in artefacts: an alias, a folder's name or a hub id.
        steps: Denoising steps where `generate` is not told; None: the pipeline's own number.
        guidance: Guidance scale, likewise.

    Raises:
        UnknownName: No adapter serves its class or one of its text encoders.
        InputError: A text encoder that the family needs is missing.
    """

    selective = True
    """Some rows of a call are not edited: those of negative and of empty prompts (`deactivate.overlay`)."""

    def __init__(self, pipeline: Any, name: str, *, steps: int | None = None, guidance: float | None = None) -> None:
        self.family = family_of(pipeline)
        self.steps, self.guidance = _drawing.own(pipeline, steps, guidance)
        self.pipeline, self.name = pipeline, name
        self.model = parts_of(pipeline)
        self.model.eval()
        needed = [e for e in self.family.encoders if e not in self.family.optional]
        if missing := [e for e in needed if e not in self.model]:
            raise InputError(f"{name}: the pipeline has no {', '.join(missing)}, and prompts cannot be read without; load it whole")
        self.prompts: tuple[str | None, ...] | None = None
        """Prompt of each row of the denoiser's call under way (None: a negative row); None where no call is."""
        self._digest: tuple[object, str] | None = None

    def __repr__(self) -> str:
        return f"ImageHost({self.name!r}, {self.family.name}, {', '.join(self.model)})"

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        if not torch.accelerator.is_available():  # nothing to offload from; the pipeline looks through all modules for hooks each time
            return torch.device("cpu")
        return self.pipeline._execution_device

    @property
    def denoiser(self) -> Any:
        """The U-Net or transformer."""
        return self.model[self.family.denoiser]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the denoiser's parameters."""
        return self.denoiser.dtype

    @cached_property
    def readers(self) -> dict[str, TextReader]:
        """Its text encoders by component."""
        return {part: TextReader(self, part) for part in self.family.encoders if part in self.model}

    @property
    def timestep(self) -> Float[Tensor, " b"] | None:
        """Time of the denoiser's call under way on the scheduler's scale, one or one a row; known inside `clock.clock` and under edits."""
        return self.model.timestep

    @property
    def digest(self) -> str:
        """sha256 over the sorted parameters of all parts. A text encoder's own is `reader(…).digest`."""
        state = tuple((n, p.data_ptr(), p._version) for n, p in self.model.named_parameters())
        if self._digest is None or self._digest[0] != state:
            self._digest = state, parameter_digest(self.model)
        return self._digest[1]

    @cached_property
    def _blocks(self) -> dict[str, nn.Module]:
        """Hook point -> module in the denoiser."""
        patterns = [re.compile(b) for b in self.family.blocks]
        named = self.denoiser.named_modules()
        return {f"{self.family.denoiser}.{path}.out": m for path, m in named if any(p.fullmatch(path) for p in patterns)}

    def hook_points(self) -> list[str]:
        """Names of all hook points: those of the text encoders by layer, those of the denoiser by module path."""
        return [*(p for r in self.readers.values() for p in r.hook_points()), *self._blocks]

    def resolve(self, hook_point: str) -> HookSite:
        """Where `hook_point` lies.

        Raises:
            HookPointNotFound: Names the nearest ones.
        """
        part = hook_point.partition(".")[0]
        if part in self.readers:
            return self.readers[part].resolve(hook_point)
        if hook_point not in self._blocks:
            parts = ", ".join((*self.readers, self.family.denoiser))
            raise HookPointNotFound("hook point", hook_point, self.hook_points(), f"The part comes first ({parts})")
        f, block = self.family, self._blocks[hook_point]
        path = hook_point.removesuffix(".out")
        return HookSite(hook_point, block, "output", f.width(self.denoiser, block), path, f.index, f.spatial)

    def reader(self, hook_points: Sequence[str]) -> TextReader:
        """The text encoder that the hook points belong to, with its tokenizer.

        Raises:
            HookPointNotFound: There is no such hook point.
            InputError: They belong to several encoders, or to the denoiser, which reads more than prompts.
        """
        if isinstance(hook_points, str) or not hook_points:
            raise MatchedNothing(f"hook_points must be a list of at least one hook point; found {hook_points!r}")
        found = list(dict.fromkeys(self.resolve(p).path.partition(".")[0] for p in hook_points))
        if len(found) > 1:
            raise InputError(f"hook points of one text encoder at a time, which has its own tokens; found those of {', '.join(found)}")
        if found[0] not in self.readers:
            raise InputError(
                f"{hook_points[0]} lies in the {found[0]}, which reads more than prompts (denoising.DenoiserSource draws pictures for it); "
                f"name a hook point of {', '.join(self.readers)}"
            )
        return self.readers[found[0]]

    def activations(self, prompts: Sequence[str], hook_points: Sequence[str], *, grad: bool = False) -> dict[str, Tensor]:
        """What passes hook points of the text encoders, each `[b t d]` at the encoder's fixed length.

        Each encoder stops at its deepest. Rewrites and edits that are in force are seen. `reader(…).keep_mask` says
        which tokens count.

        Raises:
            HookPointNotFound: Before anything runs.
            InputError: A hook point of the denoiser, or a prompt that is too long.
        """
        if isinstance(hook_points, str) or not hook_points:
            raise MatchedNothing(f"hook_points must be a list of at least one hook point; found {hook_points!r}")
        by_part: dict[str, list[str]] = {}
        for point in dict.fromkeys(hook_points):
            by_part.setdefault(self.reader([point]).part, []).append(point)
        seen: dict[str, Tensor] = {}
        for part, points in by_part.items():
            reader = self.readers[part]
            seen |= reader.activations(*reader.pad(reader.token_ids(prompts)), points, grad=grad)
        return {p: seen[p] for p in hook_points}

    def replaced(self, hook_point: str, fn: Rewrite) -> AbstractContextManager[Fired]:
        """Block in which `fn(x)` replaces what passes `hook_point` (`[b h*w d]` in a U-Net); yields the firings."""
        return rewritten([(self.resolve(hook_point), fn)])

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises where a prompt is longer than one of the text encoders takes."""
        for reader in self.readers.values():
            reader.token_ids(prompts)

    def encode(self, prompts: Sequence[str], *, negative: bool = False) -> States:
        """Prompts as the denoiser reads them.

        Args:
            prompts: One a row.
            negative: They guide away: edits leave them alone, and SDXL puts zeros in the place of the empty one.

        Raises:
            InputError: No prompts, or one that is longer than a text encoder takes.
        """
        self.check_prompts(prompts)
        embeds, pooled = self.family.encode(self.pipeline, prompts)
        if negative and not any(prompts) and self.family.zero_negative and self.pipeline.config.force_zeros_for_empty_prompt:
            embeds, pooled = torch.zeros_like(embeds), None if pooled is None else torch.zeros_like(pooled)
        return States(embeds, (None,) * len(prompts) if negative else tuple(prompts), pooled)

    def predict(
        self, latents: Float[Tensor, "b c h w"], step: int | Int[Tensor, "b"] | Float[Tensor, "b"], states: States
    ) -> Float[Tensor, "b c h w"]:
        """The denoiser's output: noise, velocity, or noise minus picture, as the pipeline's scheduler takes it.

        Args:
            latents: Noisy latents, as the scheduler scales them for the denoiser.
            step: Time on the scheduler's scale (0 to 1000), one for all rows or one a row.
            states: Of one prompt a row; see `encode`.
        """
        if len(latents) != len(states):
            raise InputError(f"predict: {len(latents)} latents and {len(states)} prompts; one prompt a row")
        steps = torch.as_tensor(step, device=latents.device).expand(len(latents))
        with self.rows(states.prompts):
            return self.family.predict(self.pipeline, latents, steps, states)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        negative: str | Sequence[str] = "",
        batch: int = 8,
        size: tuple[int, int] | None = None,
    ) -> UInt8[Tensor, "n 3 h w"]:
        """Pictures, one a prompt, by the pipeline's own call.

        Each picture has a CPU generator of its own, so that its noise depends neither on the batch nor on its place in it.

        Args:
            prompts: What to draw.
            seed: The i-th prompt uses seed `seed + i`.
            seeds: Or one seed a prompt.
            steps: Denoising steps; None: the host's own number.
            guidance: Guidance scale; None: the host's own.
            negative: Prompt to guide away from, or one a prompt.
            batch: Pictures at a time.
            size: Height and width in pixels; None: the pipeline's own.

        Raises:
            InputError: No prompts, a prompt that is too long, or a number out of range.
        """
        steps, guidance = _drawing.checked(self.steps if steps is None else steps, self.guidance if guidance is None else guidance)
        options: dict[str, Any] = {} if size is None else {"height": size[0], "width": size[1]}
        found = _drawing.seeds_of(prompts, seed, seeds)
        return _drawing.generate(self, prompts, found, negative, batch, guidance, {**options, "num_inference_steps": steps})

    @property
    def sampling(self) -> dict[str, Any]:
        """How `generate` draws where it is not told: scheduler and digest of its settings, steps, guidance."""
        return _drawing.sampling(self)

    def moved(self, prompts: Sequence[str], *, batch: int = 8) -> Bool[Tensor, " n"]:
        """Which prompts' pictures the edits that lie on the host can change; see `t2i.routing.moved`."""
        return _routing.moved(self, prompts, batch)

    def latents(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c p q"]:
        """The latents of pictures as the denoiser sees them: mean of the posterior, shifted and scaled. No graph."""
        return _noise.latents_of(self, images)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The denoiser's training loss: mean squared error of its prediction at one noise level a row, float32."""
        return _noise.loss(self, batch)

    @contextmanager
    def rows(self, prompts: Sequence[str | None]) -> Iterator[None]:
        """Names the prompts of the rows that the denoiser computes inside the block (`ImageHost.prompts`)."""
        before, self.prompts = self.prompts, tuple(prompts)
        try:
            yield
        finally:
            self.prompts = before

    def weights(self, role: str) -> dict[str, nn.Parameter]:
        """Matrices of a role by full parameter name, the part first; see `t2i.parameters`.

        Raises:
            UnknownName: No such role.
            MatchedNothing: This pipeline has none.
        """
        return _parameters.weights(self, role)

    def token_roles(self, prompt: str, subject: str | None = None, *, part: str = "text_encoder") -> TokenRoles:
        """Which tokens of `prompt`, padded as the pipeline does it, are the subject, its last token, EOS, padding, specials."""
        reader = self.readers[part]
        reader.token_ids([prompt])
        return token_roles(reader.tokenizer, prompt, subject, length=reader.fixed_length)

    def check_sae(self, sae: "SAE") -> None:
        """Raises where an SAE was not trained on the text encoder or denoiser that its hook point names; see `saes.check_sae`."""
        _saes.check_sae(self, sae)

    def check_edit(self, edit: "Edit") -> None:
        """Raises where an edit could not take effect on the parts that it touches."""
        _routing.check_edit(self, edit)

    def router(self, overlay: "Overlay") -> "_routing.ImageRouter":
        """What stands in front of the host while edits lie on it."""
        return _routing.ImageRouter(self, overlay)
