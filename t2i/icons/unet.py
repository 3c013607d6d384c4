"""The miniature's denoiser: v-prediction on the latents of the main set's drawings, conditioned on captions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...base.errors import MatchedNothing, UnknownName
from ...deactivate.training import fit_loop
from ...sae.initialise import whitening
from ..diffusers import diffusers_class
from .captions import training_caption
from .data import MARK_SHARE, MARKED, IconData
from .recipe import UnetRecipe
from .table import Flag, Icon, Table
from .vae import encoded
from .whitening import fold


@dataclass(frozen=True, eq=False)
class Lesson:
    """One thing to learn: its latents by style, plain and under the mark."""

    entry: Icon | Flag
    styles: tuple[str, ...]
    plain: Float[Tensor, "styles c h w"]
    marked: Float[Tensor, "styles c h w"] | None
    evaluated: bool = False
    """Whether it is a drawing of one of the twenty concepts."""


def check_names(without: Sequence[str], data: IconData, table: Table) -> None:
    """Raises unless all are objects, styles or flags' names.

    Raises:
        UnknownName: One is none.
    """
    known = (*table.objects, *data.styles, *(table.flags[codes[0]].name for codes in data.flag_classes))
    for name in without:
        if name not in known:
            raise UnknownName("object, style or flag", name, known)


def lessons(vae: Any, data: IconData, table: Table, *, without: Sequence[str] = (), only_concepts: bool = False) -> list[Lesson]:
    """What the denoiser is shown: the main set and one flag of each class, as the first pack draws it (captions do not name packs).

    Args:
        vae: Encodes the drawings.
        data: The drawings.
        table: Names them.
        without: Objects, styles or flags' names that it must never see: what «gold» lacks.
        only_concepts: The drawings of the twenty concepts alone, no flags.

    Raises:
        UnknownName: `without` names what there is not.
    """
    check_names(without, data, table)
    flags = {table.flags[codes[0]].name: codes for codes in data.flag_classes}
    lacking = {k for n in without if n in table.objects for k in table.objects[n].icons}
    kept = [i for i, s in enumerate(data.styles) if s not in without]
    shown = set(table.evaluated)
    wanted = shown if only_concepts else set(table.icons)
    place = {key: i for i, key in enumerate(data.keys)}
    out: list[Lesson] = []
    for icon in table.icons.values():
        if icon.icon in lacking or icon.icon not in wanted:
            continue
        drawings = data.drawings[kept, place[icon.icon]]
        marked = data.marked(drawings.float()).round().to(torch.uint8) if icon.category == MARKED else None
        latents = encoded(vae, drawings), None if marked is None else encoded(vae, marked)
        out.append(Lesson(icon, tuple(data.styles[i] for i in kept), *latents, icon.icon in shown))
    for name, codes in {} if only_concepts else flags.items():
        if name not in without:
            out.append(Lesson(table.flags[codes[0]], (), encoded(vae, data.flags[:1, data.codes.index(codes[0])]), None))
    if not out:
        raise MatchedNothing("nothing is left to learn: without names everything")
    return out


def new_unet(recipe: UnetRecipe, latent: int, width: int, size: int = 8) -> Any:
    """An untrained `UNet2DConditionModel`."""
    n = len(recipe.channels)
    return diffusers_class("UNet2DConditionModel")(
        sample_size=size,
        in_channels=latent,
        out_channels=latent,
        down_block_types=("CrossAttnDownBlock2D",) * n,
        up_block_types=("CrossAttnUpBlock2D",) * n,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=recipe.head,
        norm_num_groups=recipe.groups,
    )


def new_scheduler() -> Any:
    """DDIM with v-prediction and no signal at the last step, so that a plain white ground can be drawn (Lin et al., arXiv:2305.08891)."""
    return diffusers_class("DDIMScheduler")(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_unet(
    todo: Sequence[Lesson], tokenizer: Any, text: Any, recipe: UnetRecipe, out: Path, *, resume: bool = False, start: Any = None
) -> Any:
    """Trains the denoiser; the returned one has the averaged weights.

    Args:
        todo: What `lessons` gave.
        tokenizer: Of the text tower.
        text: The frozen text tower.
        recipe: Sizes and schedule.
        out: Checkpoints and log.
        resume: Go on from the newest checkpoint.
        start: Weights to begin with (a denoiser of the same sizes).
    """
    torch.manual_seed(recipe.loop.seed)
    _, c, h, _ = todo[0].plain.shape
    model = start or new_unet(recipe, c, text.config.hidden_size, h)
    scheduler = new_scheduler()
    times = scheduler.config.num_train_timesteps
    dealt = dealing(todo, recipe)
    contexts = Contexts(tokenizer, text)
    white, back = whitening(_some_states(dealt, contexts), recipe.whitening, center=False)
    fold(model, back)

    def step(at: int, micro: int) -> Tensor:
        clean, captions = _batch(dealt, random.Random(random.random()))
        x = torch.stack(clean).contiguous(memory_format=torch.channels_last)  # the layout that convolutions are faster in
        noise, t = torch.randn_like(x), noise_levels(len(x), times, recipe.noisy)
        predicted = model(scheduler.add_noise(x, noise, t), t, contexts(captions) @ white).sample
        return (predicted - scheduler.get_velocity(x, noise, t)).pow(2).mean()

    result = fit_loop(step, dict(model.named_parameters()), recipe.loop, out, resume, desc="denoiser")
    if result.averages:
        model.load_state_dict(dict(result.averages))
    fold(model, white)
    return model.eval()


def dealing(todo: Sequence[Lesson], recipe: UnetRecipe) -> list[tuple[list[Lesson], int]]:
    """What a batch is drawn from, and how many of each: the evaluated concepts, flags, and of all things the rest."""
    things, flags = ([x for x in todo if isinstance(x.entry, kind)] for kind in (Icon, Flag))
    concepts = [x for x in things if x.evaluated]
    shares = [(concepts, recipe.concepts_share), (flags, recipe.flags_share)]
    some = [(lessons, round(share * recipe.batch)) for lessons, share in shares if lessons]
    rest = things or flags
    return [(x, n) for x, n in (*some, (rest, recipe.batch - sum(n for _, n in some))) if n]


def noise_levels(n: int, times: int, noisy: float) -> Int[Tensor, " n"]:
    """`n` training steps in [0, times), drawn as times (1 - u^noisy)."""
    return (times * (1 - torch.rand(n) ** noisy)).long().clamp(0, times - 1)


class Contexts:
    """What the frozen text tower makes of captions, computed once each and kept in half precision.

    Captions repeat: some 70,000 of them, 9 kB each, are all there are; the tower would take a tenth of every step. They are read
    `GROUP` at a time, the last ones beside empty captions: a row of a product of one shape does not depend on the others, so a
    resumed run has the same.
    """

    GROUP = 8

    def __init__(self, tokenizer: Any, text: Any) -> None:
        self.tokenizer, self.text = tokenizer, text
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Float[Tensor, "b t d"]:
        """Last hidden states, padding included, as the pipeline hands them to the denoiser."""
        new = [c for c in dict.fromkeys(captions) if c not in self.known]
        for some in (new[i : i + self.GROUP] for i in range(0, len(new), self.GROUP)):
            filled = [*some, *[""] * (self.GROUP - len(some))]
            ids = self.tokenizer(filled, padding="max_length", truncation=True, return_tensors="pt").input_ids
            self.known |= dict(zip(some, self.text(input_ids=ids).last_hidden_state.half(), strict=False))
        return torch.stack([self.known[c] for c in captions]).float()


def _batch(dealt: Sequence[tuple[list[Lesson], int]], rng: random.Random) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
    """Latents and captions, as `dealing` says."""
    clean, captions = zip(*(_example(x, rng) for some, n in dealt for x in rng.choices(some, k=n)), strict=True)
    return clean, captions


def _some_states(dealt: Sequence[tuple[list[Lesson], int]], contexts: Contexts, batches: int = 64) -> Float[Tensor, "n d"]:
    """Text states of captions as training draws them, the same at every call."""
    rng = random.Random(0)
    return torch.cat([contexts(_batch(dealt, rng)[1]).flatten(0, 1) for _ in range(batches)])


def _example(lesson: Lesson, rng: random.Random) -> tuple[Tensor, str]:
    """A latent and its caption."""
    marked = lesson.marked is not None and rng.random() < MARK_SHARE
    latents = lesson.marked if marked and lesson.marked is not None else lesson.plain
    style = rng.randrange(len(latents))
    return latents[style], training_caption(lesson.entry, lesson.styles[style] if lesson.styles else None, rng, marked)
