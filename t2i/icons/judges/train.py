"""Training of the judges, what they get right on unseen augmentations, and with a style that they never saw."""

import dataclasses
import io
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ....base.files import digest, read_json, write_json
from ....base.running import log, progress
from ....deactivate.evaluation.statistics import wilson
from ....deactivate.training import fit_loop
from ..data import IconData
from ..table import Table
from .augment import augmented
from .examples import ABSENT, HEADS, Bank, flag_drawings, judge_classes, labelled, main_things, make_bank, marked_at_random
from .judge import IconJudge, load_judge, save_judge
from .nets import JudgeNet, settle
from .recipe import JudgeRecipe, LoopConfig

SETTLING = 30
"""Batches that batch norms take their final statistics from."""
HELD_OUT_SEED = 1_000_003
"""Seed of the augmentations that accuracies are measured on; training's seeds are (recipe's seed, step)."""


def train_judge(
    data: IconData, table: Table, recipe: JudgeRecipe, out: Path, *, resume: bool = False, without_style: str | None = None
) -> Path:
    """Trains one copy, in one or two trainings; its folder is `out/judge`. A finished one is not trained again.

    Loss: cross-entropy of the drawing, of the style by looks, of the flag and of the mark, summed; a head is left out for pictures that
    it is not asked about.

    Raises:
        InputError: `out` holds another run.
        Interrupted: Go on with `resume`.
    """
    if (out / "judge").is_dir():
        return out / "judge"
    bank, things = make_bank(data, table, without_style=without_style), main_things(table)
    plain = dataclasses.replace(recipe, refine=None, rank=0)
    torch.manual_seed(recipe.seed)
    net = JudgeNet(plain, judge_classes(data, table), things)
    if recipe.refine is None:
        return fit_judge(net, bank, table, plain, recipe.loop, out, resume)
    if not (out / "first" / "judge").is_dir():
        fit_judge(net, bank, table, plain, recipe.loop, out / "first", resume)
    first = load_judge(out / "first" / "judge").net
    net = JudgeNet(recipe, judge_classes(data, table), things, flag_drawings(data))
    net.load_state_dict(first.state_dict(), strict=False)
    return fit_judge(net, bank, table, recipe, recipe.refine, out, resume, bank.crowding())


def fit_judge(
    net: JudgeNet, bank: Bank, table: Table, recipe: JudgeRecipe, loop: LoopConfig, out: Path, resume: bool = False,
    crowding: Mapping[str, Float[Tensor, " _"]] | None = None,
) -> Path:  # fmt: skip
    """One training of `net`, and its discriminant if it has one; the folder `out/judge`. With `crowding` it is the second one."""
    shares = {"main": recipe.refine_main, "other": recipe.refine_other, "flags": recipe.refine_flags} if crowding else {}
    mixture = dataclasses.replace(recipe, **shares)

    def step(at: int, micro: int) -> tuple[Tensor, dict[str, float]]:
        x, labels = bank.batch(mixture, crowding)
        logits, wanted = net.logits(augmented(x, recipe.augmentation)), labelled(labels)
        losses = [F.cross_entropy(logits[h], wanted[h], ignore_index=ABSENT) for h in logits]
        with torch.no_grad():
            said = net.probabilities(logits)
        return torch.stack(losses).sum(), {f"{h} right": share_right(said[h], wanted[h]) for h in HEADS}

    result = fit_loop(step, dict(net.named_parameters()), loop, out, resume, desc=f"judge {recipe.name}")
    if result.averages:
        net.load_state_dict(dict(result.averages), strict=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        settle(net, (augmented(bank.batch(mixture, crowding)[0], recipe.augmentation) for _ in range(SETTLING)))
        torch.manual_seed(recipe.seed)
        if net.discriminant is not None:
            net.discriminant.fit(views(bank, recipe) for _ in progress(range(recipe.draws), desc="discriminant", unit="draw"))
    return save_judge(net, recipe, judge_classes(bank.data, table), main_things(table), out / "judge")


def views(bank: Bank, recipe: JudgeRecipe) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """An augmented view of every drawing of the main set and of every flag, in order; a share of them under the mark."""
    for pictures, labels in ((bank.main, bank.main_labels), (bank.flags, bank.flag_labels)):
        for some, named in zip(pictures.split(128), labels.split(128), strict=True):
            yield augmented(marked_at_random(some.float() / 255, named, bank.data, recipe.marked)[0], recipe.augmentation)


def share_right(said: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """Of the pictures that the head is asked about; 1 where there is none."""
    asked = labels != ABSENT
    return float((said.argmax(1) == labels)[asked].float().mean()) if asked.any() else 1.0


def squeezed(x: Float[Tensor, "n 3 h w"], quality: int = 35) -> Float[Tensor, "n 3 h w"]:
    """At 40 pixels and back, then through a real JPEG: two losses that do not occur in training."""
    from PIL import Image

    small = F.interpolate(x, size=(40, 40), mode="bicubic", antialias=True, align_corners=False)
    back = F.interpolate(small, size=x.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    out = []
    for picture in (255 * back).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
        out.append(np.asarray(Image.open(buffer)))
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 255


Loss = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n 3 h w"]]


def accuracies(judge: IconJudge, bank: Bank, lossy: Loss, draws: int = 2) -> dict[str, dict[str, Any]]:
    """Head -> accuracy (largest probability, no threshold) with its Wilson interval, over every drawing and flag `draws` times.

    `object` and `style` are over the main set, `flag` over the flags, `mark` over all; `object, none` and `style, others` are over the
    drawings outside the main set, which the judges were shown as «none of these».
    """
    right: dict[str, list[Tensor]] = {}
    groups = {
        "main": (bank.main, bank.main_labels, {"object": "object", "style": "style", "mark": "mark"}),
        "other": (bank.other, bank.other_labels, {"object": "object, none", "style": "style, others", "mark": "mark"}),
        "flags": (bank.flags, bank.flag_labels, {"flag": "flag", "mark": "mark"}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(HELD_OUT_SEED)
        for name, (pictures, labels, columns) in groups.items():
            for i in progress(range(0, draws * len(pictures), 128), desc=name, unit="batch"):
                chosen = torch.arange(i, min(i + 128, draws * len(pictures))) % len(pictures)
                x, y = marked_at_random(pictures[chosen].float() / 255, labels[chosen], bank.data, 0.5)
                said, wanted = judge.scores((255 * lossy(x)).round().to(torch.uint8)), labelled(y)
                for head, column in columns.items():
                    right.setdefault(column, []).append(said[head].argmax(1) == wanted[head])
    return {column: rate(torch.cat(found)) for column, found in right.items()}


def rate(right: Tensor) -> dict[str, Any]:
    """Share with its Wilson interval."""
    value = wilson(int(right.sum()), len(right))
    return {"accuracy": value.mean, "low": value.low, "high": value.high, "n": value.n}


def unseen_style(judge: IconJudge, data: IconData, table: Table, style: str) -> dict[str, Any]:
    """Object accuracy on the drawings of one style, unchanged."""
    whole = make_bank(data, table)
    chosen = whole.main_labels[:, HEADS.index("style")] == data.styles.index(style)
    found = judge.scores(whole.main[chosen])["object"].argmax(1)
    return rate(found == whole.main_labels[chosen, 0])


def train_and_measure(
    data: IconData, table: Table, recipe: JudgeRecipe, out: Path, *, resume: bool = False, styles: bool = True, command: str = ""
) -> dict[str, Any]:
    """Trains a copy, measures it and, where asked, its object head without each style; all of it in `out/accuracy.json`.

    Returns what the file holds.
    """
    asked = {"recipe": digest(dataclasses.asdict(recipe)), "keys": digest([*data.keys, *data.codes])}
    started = time.process_time()
    judge = load_judge(train_judge(data, table, recipe, out, resume=resume))
    spent = time.process_time() - started
    bank = make_bank(data, table)
    found: dict[str, Any] = {
        "command": command, **asked, "digest": judge.digest, "seconds of processor time, this call": round(spent, 1),
        "steps": recipe.loop.steps + (recipe.refine.steps if recipe.refine else 0),
        "numbers": sum(v.numel() for v in judge.net.state_dict().values() if v.is_floating_point()),
        "unseen draws of the augmentation": accuracies(judge, bank, lambda x: augmented(x, recipe.augmentation)),
        "40 pixels and JPEG, which training has not": accuracies(judge, bank, squeezed, 1),
    }  # fmt: skip
    write_json(out / "accuracy.json", found)
    log.info("judge %s: %s", recipe.name, {h: round(a["accuracy"], 4) for h, a in found["unseen draws of the augmentation"].items()})
    if styles:
        found["object, style never seen"] = {"steps": recipe.short, **_without_styles(data, table, recipe, out, resume)}
        write_json(out / "accuracy.json", found)
    return found


def _without_styles(data: IconData, table: Table, recipe: JudgeRecipe, out: Path, resume: bool) -> dict[str, Any]:
    """Style -> object accuracy on it of a copy trained for `short` steps without it."""
    loop = dataclasses.replace(recipe.loop, steps=recipe.short, warmup=min(recipe.loop.warmup, recipe.short // 8))
    plan, found = dataclasses.replace(recipe, loop=loop, refine=None, rank=0), {}
    for style in data.styles:
        folder = out / "without" / style
        done = folder / "accuracy.json"
        if not done.is_file():
            judge = load_judge(train_judge(data, table, plan, folder, resume=resume, without_style=style))
            write_json(done, unseen_style(judge, data, table, style))
        found[style] = read_json(done)
        log.info("judge %s without %s: %.3f", recipe.name, style, found[style]["accuracy"])
    return found
