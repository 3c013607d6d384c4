"""`efface generate`: texts from a language model or pictures from a pipeline, with or without edits."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.errors import InputError
from ..base.files import new_folder, write_bytes, write_text
from . import options as o

if TYPE_CHECKING:
    from torch import Tensor


def generate(
    model: o.Model,
    prompt: Annotated[list[str], typer.Option("--prompt", help="May be repeated; the i-th uses seed S + i.")],
    out: o.Out,
    edit: o.Edits = [],  # noqa: B006
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", help="Texts: tokens at most; 60 where not given.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Texts: the likeliest token always.")] = False,
    steps: Annotated[int | None, typer.Option("--steps", help="Pictures: denoising steps; unset: the pipeline's own.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Pictures: guidance scale; unset: the pipeline's own.")] = None,
    negative: Annotated[str | None, typer.Option("--negative", help="Pictures: what to guide away from.")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Pictures: height and width in pixels; unset: the pipeline's own.")] = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """Continues each prompt, or draws it; one prompt and a FILE: that file; else a folder of numbered files."""
    from ..t2i.aliases import is_pipeline

    if not prompt:
        raise InputError("--prompt is missing; give at least one")
    if out.exists():
        raise InputError(f"--out {out} exists already; choose another name")
    o.check_model(model)
    drawing = is_pipeline(model)
    of_texts = {"--max-new-tokens": max_new_tokens, "--greedy": greedy or None}
    of_pictures = {"--steps": steps, "--guidance": guidance, "--negative": negative, "--size": size}
    if foreign := [n for n, v in (of_texts if drawing else of_pictures).items() if v is not None]:
        raise InputError(
            f"{', '.join(foreign)}: for {'texts' if drawing else 'pictures'}, and --model {model} makes the others; leave it out"
        )
    if drawing and len(prompt) == 1 and out.suffix not in ("", ".png"):
        raise InputError(f"--out {out}: pictures are written as PNG; name a file that ends in .png, or a folder")
    host = o.load_any_host(model, dtype, device)
    from ..deactivate.edit import Edit

    with ExitStack() as stack:
        for path in edit:
            stack.enter_context(Edit.load(path).applied(host))
        if drawing:
            side = None if size is None else (size, size)
            images = host.generate(prompt, seed=seed, steps=steps, guidance=guidance, negative=negative or "", size=side)  # pyright: ignore[reportCallIssue]: an image host
            return _write_pictures(out, prompt, images, as_json)  # pyright: ignore[reportArgumentType]
        texts: Any = host.generate(prompt, seed=seed, max_new_tokens=max_new_tokens or 60, greedy=greedy)  # pyright: ignore[reportCallIssue]: a language host
    _write_texts(out, prompt, texts, as_json)
    return None


def _write_texts(out: Path, prompts: list[str], texts: list[str], as_json: bool) -> None:
    if len(texts) == 1 and out.suffix:
        write_text(out, texts[0] + "\n")
    else:
        with new_folder(out) as work:
            for i, text in enumerate(texts):
                write_text(work / f"{i:03}.txt", text + "\n")
    o.emit({"out": str(out), "texts": texts}, "\n---\n".join(p + t for p, t in zip(prompts, texts, strict=True)), as_json)


def _write_pictures(out: Path, prompts: list[str], images: "Tensor", as_json: bool) -> None:
    from ..t2i.pictures import png

    if len(images) == 1 and out.suffix:
        write_bytes(out, png(images[0]))
        files = [str(out)]
    else:
        with new_folder(out) as work:
            for i, image in enumerate(images):
                write_bytes(work / f"{i:03}.png", png(image))
        files = [str(out / f"{i:03}.png") for i in range(len(images))]
    o.emit({"out": str(out), "pictures": files}, "\n".join(f"{f}: {p}" for f, p in zip(files, prompts, strict=True)), as_json)
