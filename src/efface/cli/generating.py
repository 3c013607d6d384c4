"""`efface generate`: texts from a model, with or without edits."""

from contextlib import ExitStack
from typing import Annotated

import typer

from ..base.errors import InputError
from ..base.files import new_folder, write_text
from . import options as o


def generate(
    model: o.Model,
    prompt: Annotated[list[str], typer.Option("--prompt", help="May be repeated; the i-th uses seed S + i.")],
    out: o.Out,
    edit: o.Edits = [],  # noqa: B006
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens")] = 60,
    greedy: Annotated[bool, typer.Option("--greedy", help="The likeliest token always.")] = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """Continues each prompt; one prompt and a FILE: that file; else a folder of numbered files."""
    from ..deactivate.edit import Edit

    if not prompt:
        raise InputError("--prompt is missing; give at least one")
    if out.exists():
        raise InputError(f"--out {out} exists already; choose another name")
    host = o.load_host(model, dtype, device)
    with ExitStack() as stack:
        for path in edit:
            stack.enter_context(Edit.load(path).applied(host))
        texts = host.generate(prompt, seed=seed, max_new_tokens=max_new_tokens, greedy=greedy)
    if len(texts) == 1 and out.suffix:
        write_text(out, texts[0] + "\n")
    else:
        with new_folder(out) as work:
            for i, text in enumerate(texts):
                write_text(work / f"{i:03}.txt", text + "\n")
    o.emit({"out": str(out), "texts": texts}, "\n---\n".join(p + t for p, t in zip(prompt, texts, strict=True)), as_json)
