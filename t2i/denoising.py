"""Activations of a denoiser, read while pictures are drawn: prompts -> drawings -> every patch at chosen steps -> mixing buffer."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from einops import rearrange
from torch import Tensor

from ..base.errors import InputError, MatchedNothing
from ..llm.hooks import attach
from ..sae.sources.base import Batch, Plain, SourceState, check_same
from ..sae.sources.buffer import MixingBuffer
from ..sae.sources.host import Part, Texts, documents
from .clock import clock
from .drawing import denoise, guidance_of
from .drawing_config import DrawingConfig
from .saes import in_denoiser, part_digest

if TYPE_CHECKING:
    from .host import ImageHost

GROUP = 4096
"""Prompts that are held and shuffled at a time."""


@torch.no_grad()
def read_drawing(
    host: "ImageHost", prompts: Sequence[str], seeds: Sequence[int], hook_points: Sequence[str], config: DrawingConfig
) -> dict[float, Batch]:
    """Draws pictures and returns what passed the hook points: time -> hook point -> `[n d]`, every patch of every row a vector.

    Times are the scheduler's, noisiest first. A time at which the sampler calls the denoiser twice has the vectors of both calls.

    Args:
        host: As it stands; edits that are in force for all rows are seen.
        prompts: Drawn in one batch.
        seeds: One a prompt.
        hook_points: In the denoiser.
        config: Steps and rows.

    Raises:
        InputError: A hook point elsewhere, or an edit that is selected by prompt lies on the host, so that its denoiser runs twice.
        MatchedNothing: No call was read: the sampler made fewer than `collect` asks for.
    """
    refuse_selected(host)
    denoiser_points(host, hook_points)
    order: dict[float, int] = {}
    seen: dict[float, dict[str, list[Tensor]]] = {}

    def see(point: str, x: Tensor) -> None:
        time = float(cast(Tensor, host.timestep)[0])
        if config.collect and order.setdefault(time, len(order)) not in config.collect:
            return
        rows = [i for i, prompt in enumerate(host.prompts or ()) if config.halves == "both" or prompt is not None]
        seen.setdefault(time, {}).setdefault(point, []).append(rearrange(x[rows], "b p d -> (b p) d").detach().clone())

    options: dict[str, Any] = {"num_inference_steps": config.denoise_steps}
    if config.size is not None:
        options |= {"height": config.size[0], "width": config.size[1]}
    with ExitStack() as undo:
        undo.enter_context(clock(host))
        for point in hook_points:
            undo.callback(attach(host.resolve(point), lambda x, point=point: see(point, x)).remove)
        guidance = guidance_of(host, config.guidance)
        denoise(host, prompts, seeds, [config.negative] * len(prompts), guidance, options, "latent")
    if not seen or (config.collect and len(seen) < len(config.collect)):
        raise MatchedNothing(f"collect {list(config.collect)}: the sampler of {host.name} told the denoiser {len(order)} different times")
    return {t: {p: torch.cat(acts[p]) for p in hook_points} for t, acts in sorted(seen.items(), reverse=True)}


def denoiser_points(host: "ImageHost", hook_points: Sequence[str]) -> None:
    """Raises unless the hook points are different ones of the denoiser.

    Raises:
        HookPointNotFound: There is no such hook point.
        InputError: One of a text encoder, which is read prompt by prompt (`HostSource`), or one twice.
    """
    if isinstance(hook_points, str) or not hook_points or len(set(hook_points)) < len(hook_points):
        raise InputError(f"hook_points must be a list of different names; found {hook_points!r}")
    if other := [p for p in hook_points if not in_denoiser(host, p)]:
        raise InputError(
            f"{', '.join(other)}: not in the {host.family.denoiser}; text encoders are read without drawing, in a run of their own"
        )


def refuse_selected(host: "ImageHost") -> None:
    """Raises where edits are selected by prompt: the denoiser then runs once for each set of them."""
    from ..deactivate.ledger import overlay_of

    if overlay_of(host).gated:
        raise InputError(f"an edit that is selected by prompt lies on {host.name}: take it off before its denoiser is read")


class DenoiserSource:
    """Shuffled activations `{hook point: [batch, d]}` of a denoiser, all from the same drawings.

    Every prompt is drawn once a pass, from noise of its own. A position is (pass, prompts, drawing, step), so a resumed source hands
    out the same batches; it draws again what it had not handed out whole. Memory: the buffer, the vectors of one drawing
    (`DrawingConfig.pictures`), and 4,096 prompts.

    Args:
        host: The pipeline; see `read_drawing`.
        texts: Prompts, one a line of a corpus as `read_corpus` takes it, of a list, or of what a function returns.
        hook_points: In the denoiser; the order is kept.
        config: How pictures are drawn and what of them is read.
        batch: Vectors a batch.
        seed: Of noise, order and draws from the buffer.
        buffer: Vectors in the mixing buffer.
        part: As in `HostSource`: one prompt in twenty is `held_out`.

    Raises:
        HookPointNotFound: There is no such hook point.
        InputError: One of a text encoder, or numbers out of range.
    """

    def __init__(
        self,
        host: "ImageHost",
        texts: Texts,
        hook_points: Sequence[str],
        config: DrawingConfig | None = None,
        *,
        batch: int = 2048,
        seed: int = 0,
        buffer: int = 2**16,
        part: Part = "all",
    ) -> None:
        denoiser_points(host, hook_points)
        self.host, self.texts, self.hook_points, self.part = host, texts, list(hook_points), part
        self.config, self.batch, self.seed = config or DrawingConfig(), batch, seed
        self.buffer = MixingBuffer(max(buffer, batch), batch, seed)
        self.epoch = self.documents = self.drawings = self.steps = 0
        self.times: list[float] = []
        """Times that were read, noisiest first; known once something was drawn."""

    @property
    def token_policy(self) -> Plain:
        """What was collected: written into the SAE."""
        guidance = guidance_of(self.host, self.config.guidance)
        return {"unit": "patch", **self.config.policy(), "guidance": guidance, "times": self.times}

    @property
    def about(self) -> Plain:
        """The host's name, and the digest of its denoiser alone: the same one in another pipeline has the same."""
        return {"model": self.host.name, "model_digest": part_digest(self.host, self.hook_points[0])}

    def __iter__(self) -> Iterator[Batch]:
        """Batches to the end of the pass; the last one may be smaller."""
        seen = self.buffer.size > 0
        yield from self.buffer.drain(self.buffer.capacity)  # what a resumed source still held above its mark
        for acts in self._read():
            seen = True
            self.buffer.add(acts)
            yield from self.buffer.drain(self.buffer.capacity)
        yield from self.buffer.drain(1)
        if not seen and self.documents == 0:
            raise MatchedNothing(f"the corpus has no prompt to draw (part {self.part!r}); give it more, one a line")
        self.epoch, self.documents, self.drawings, self.steps = self.epoch + 1, 0, 0, 0

    def _read(self) -> Iterator[Batch]:
        """The vectors of one step of one drawing after the other; the position moves before they are handed out."""
        prompts = iter(documents(self.texts, self.part, prompts=True))
        for _ in islice(prompts, self.documents):
            pass
        while group := list(islice(prompts, GROUP)):
            planned = self._plan(group)
            while self.drawings < len(planned):
                drawn = self._draw(planned[self.drawings])
                while self.steps < len(drawn):
                    self.steps += 1
                    yield drawn[self.steps - 1]
                self.drawings, self.steps = self.drawings + 1, 0
            self.documents, self.drawings = self.documents + len(group), 0

    def _plan(self, group: list[str]) -> list[list[tuple[str, int]]]:
        """The group's prompts with their seeds, in random order, dealt to drawings."""
        order = torch.randperm(len(group), generator=torch.Generator().manual_seed(self._seed("order"))).tolist()
        pairs = [(group[i], self._seed(f"{i}/{group[i]}")) for i in order]
        n = self.config.pictures
        return [pairs[i : i + n] for i in range(0, len(pairs), n)]

    def _seed(self, what: str) -> int:
        return zlib.crc32(f"{self.seed}/{self.epoch}/{self.documents}/{what}".encode())

    def _draw(self, pairs: list[tuple[str, int]]) -> list[Batch]:
        """The steps of a drawing, in random order."""
        drawn = read_drawing(self.host, [p for p, _ in pairs], [s for _, s in pairs], self.hook_points, self.config)
        sizes = {p: len(x) for p, x in next(iter(drawn.values())).items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f"hook points that are read together must have as many patches as one another; found vectors {sizes}")
        self.times = list(drawn)
        order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(self._seed(f"steps/{self.drawings}"))).tolist()
        return [drawn[self.times[i]] for i in order]

    def _settings(self) -> Plain:
        corpus = str(self.texts) if isinstance(self.texts, str) or hasattr(self.texts, "__fspath__") else None
        own = {n: getattr(self, n) for n in ("seed", "batch", "part", "hook_points")}
        policy = {k: v for k, v in self.token_policy.items() if k != "times"}
        return {**own, **policy, "pictures": self.config.pictures, "corpus": corpus, "buffer": self.buffer.capacity}

    def state(self) -> SourceState:
        """Position in the prompts, and the buffered activations."""
        place: Plain = {n: getattr(self, n) for n in ("epoch", "documents", "drawings", "steps", "times")}
        return SourceState(self.buffer.state().nested("buffer").tensors, {**place, "settings": self._settings()})

    def restore(self, state: SourceState) -> None:
        """Goes on behind the last batch handed out.

        Raises:
            InputError: The state belongs to a source with other settings.
        """
        values = cast(dict[str, Any], state.values)
        check_same("activation source", values["settings"], self._settings())
        self.epoch, self.documents, self.drawings, self.steps = (int(values[k]) for k in ("epoch", "documents", "drawings", "steps"))
        self.times = [float(t) for t in values["times"]]
        self.buffer.restore(state.inner("buffer", {}))
