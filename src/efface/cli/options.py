"""Options that several commands share, and the one way they print results."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.errors import InputError, UnknownName, near_paths, nearest
from ..base.files import PICKLES, cache_dir, digest, slug
from . import completion as complete

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..deactivate.evaluation.compare import Comparison
    from ..llm.host import Host
    from ..t2i.host import ImageHost

Model = Annotated[
    str, typer.Option("--model", "-m", help="An alias (see `efface models`), a local folder or a hub id.", autocompletion=complete.models)
]
OptionalModel = Annotated[
    str | None, typer.Option("--model", "-m", help="Another host than the one written in the SAE.", autocompletion=complete.models)
]
Concepts = Annotated[
    list[str],
    typer.Option(
        "--concept",
        "-c",
        help="A packaged concept (see `efface concepts`) or a concept file; may be repeated.",
        autocompletion=complete.concepts,
    ),
]
OneConcept = Annotated[
    str,
    typer.Option("--concept", "-c", help="A packaged concept (see `efface concepts`) or a concept file.", autocompletion=complete.concepts),
]
Saes = Annotated[
    list[Path],
    typer.Option(
        "--sae",
        help="An SAE folder (ours, sae-lens', …), a folder of them, hub:RELEASE/ID of sae-lens, or icons; may be repeated.",
        autocompletion=complete.saes,
    ),
]
Resumed = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes; what an earlier run left there is used.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes; must not exist.")]
Edits = Annotated[list[Path], typer.Option("--edit", help="An edit folder; may be repeated.", autocompletion=complete.edits)]
Split = Annotated[
    str,
    typer.Option(
        "--split", help="validation or test; every look at test is counted.", autocompletion=complete.one_of("validation", "test")
    ),
]
Shown = Annotated[
    str,
    typer.Option(
        "--split",
        help="test: figures of test too, which counts as a look at it; validation: without.",
        autocompletion=complete.one_of("validation", "test"),
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0, max=2**32 - 1)]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.", autocompletion=complete.one_of("auto", "cpu", "cuda"))]
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="float32, bfloat16 or float16.", autocompletion=complete.one_of("float32", "bfloat16", "float16")),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")]
Settings = Annotated[
    list[str],
    typer.Option("--set", help="key=value of the method's or trainer's config; may be repeated.", autocompletion=complete.settings),
]
SAE_FILES = complete.SAE_FILES
TRAINING = "train.jsonl"
"""What a training writes from its first step on."""
UNBOUNDED = 10_000
"""Columns of a terminal that has room for anything."""


def resolve_device(device: str) -> str:
    """`auto` → cuda where there is one."""
    if device not in ("auto", "cpu", "cuda") and not device.startswith("cuda:"):
        raise InputError(f"--device {device!r}: write auto, cpu or cuda")
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_split(split: str) -> None:
    """Refuses another split than validation and test, before anything heavy is loaded."""
    if split not in ("validation", "test"):
        raise UnknownName("split", split, ("validation", "test"))


def check_model(model: str) -> None:
    """Refuses a name that can be no model, before anything is loaded.

    Raises:
        UnknownName: It is neither an alias, nor a path, nor like a hub id; names the nearest alias.
        InputError: It is a path where nothing lies.
    """
    from ..llm.aliases import known
    from ..t2i.aliases import ALIASES, HUB_ID

    aliases = (*known(), *ALIASES)
    if model not in aliases and not model.startswith((".", "/", "~")) and not Path(model).exists() and not HUB_ID.fullmatch(model):
        raise UnknownName("model", model, aliases, "Or name a local folder, or a hub id owner/name")
    folder = Path(model).expanduser()
    if model.startswith((".", "/", "~")) and not folder.is_dir():
        raise InputError(
            f"--model {model} is not a folder{near_paths(folder, Path.is_dir)}; name a folder with a model, an alias or a hub id"
        )


def load_host(model: str, dtype: str, device: str) -> "Host":
    """The language model behind `model`.

    Raises:
        InputError: It is an image pipeline.
    """
    from ..t2i.aliases import is_pipeline

    if is_pipeline(model):
        raise InputError(f"--model {model}: an image pipeline, and this command reads language models only")
    return _language_host(model, dtype, device)


def load_any_host(model: str, dtype: str, device: str, *, whole: bool = False) -> "Host | ImageHost":
    """The language model or the image pipeline behind `model`; with `whole` its safety checker too."""
    from ..t2i.aliases import is_pipeline

    if not is_pipeline(model):
        return _language_host(model, dtype, device)
    from ..t2i.models import load_pipeline

    return load_pipeline(model, dtype=dtype, device=resolve_device(device), safety=whole)


def _language_host(model: str, dtype: str, device: str) -> "Host":
    """A language model; a name that can be none is refused before anything heavy is loaded."""
    check_model(model)
    from ..llm.models import load_model

    return load_model(model, dtype=dtype, device=resolve_device(device))


def sae_folders(paths: list[Path]) -> list[Path]:
    """Every SAE folder among `paths` and one or two levels below them; an alias of a packaged model stands for its packaged SAEs."""
    from ..t2i.aliases import ALIASES, packaged_saes

    found: list[Path] = []
    for path in map(_fetched, paths):
        if path.suffix in PICKLES:
            raise InputError(f"--sae {path}: pickled weights are refused; convert them to safetensors first")
        if path.suffix == ".npz" or any((path / name).is_file() for name in SAE_FILES):
            found.append(path)
            continue
        below = sorted(p.parent for name in SAE_FILES for p in (*path.glob(f"*/{name}"), *path.glob(f"*/*/{name}")))
        below = [p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts)]  # one being written
        if not below and str(path) in ALIASES:
            below = packaged_saes(str(path))
        if not below:
            if path.is_dir() and (pickles := sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)):
                raise InputError(
                    f"--sae {path}: only pickled weights ({', '.join(pickles)}), which are refused; convert them to safetensors first"
                )
            if (path / TRAINING).is_file():
                raise InputError(f"--sae {path}: training there is not finished; the same `efface train` with --resume goes on with it")
            if not path.exists():
                beside = path.parent.iterdir() if path.parent.is_dir() else ()
                near = nearest(path.name, [*(p.name for p in beside if p.is_dir()), *(ALIASES if path.name == str(path) else ())], n=2)
                said = f"; nearest: {', '.join(str(path.parent / n) for n in near)}" if near else ""
                raise InputError(f"--sae {path}: no SAE folder (cfg.json) there or below{said}. Make one with `efface train`")
            raise InputError(f"--sae {path}: no SAE folder (cfg.json) there or below; make one with `efface train`")
        found += below
    return found


def _fetched(path: Path) -> Path:
    """A folder; of `hub:RELEASE/ID` a copy in the cache, fetched once by sae-lens."""
    kind, colon, name = str(path).partition(":")
    if kind != "hub" or not colon:
        return path
    release, _, number = name.partition("/")
    if not release or not number:
        raise InputError(
            f"--sae {path}: write hub:RELEASE/ID as sae-lens names them, such as hub:gpt2-small-res-jb/blocks.8.hook_resid_pre"
        )
    place = cache_dir() / "saes" / f"{slug(name)}-{digest(name)[:8]}"
    if not place.exists():
        from ..sae import SAE

        SAE.from_pretrained(release, number).save(place)
    return place


def emit(value: Any, text: str, as_json: bool) -> None:
    """Prints `value` as one JSON object, or `text`."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n" if as_json else text.rstrip() + "\n")


def table(headers: list[str], rows: list[list[str]]) -> str:
    """A table: drawn by rich where stdout is a terminal, else plain, columns padded to their widest cell.

    Control characters are replaced, so that a token cannot move the cursor.
    """
    rows = [["".join(c if c.isprintable() else "�" for c in cell) for cell in row] for row in rows]
    if on_terminal():
        from rich.table import Table
        from rich.text import Text

        drawn = Table()
        for i, head in enumerate(headers):
            drawn.add_column(Text(head), overflow="fold", no_wrap=i == 0)  # names stay whole, to be copied
        for row in rows:
            drawn.add_row(*map(Text, row))  # as text: nothing in a cell is markup
        return rendered(drawn)
    widths = [max(len(r[i]) for r in [headers, *rows]) for i in range(len(headers))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in [headers, *rows]]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def on_terminal() -> bool:
    """Whether somebody looks at stdout: a terminal that can do more than print letters."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def rendered(drawn: "RenderableType") -> str:
    """What rich makes of it for the terminal at hand: its width, its colours or none (`NO_COLOR`)."""
    from rich.console import Console

    console = Console()
    with console.capture() as kept:
        console.print(drawn)
    return kept.get().rstrip("\n")


def comparison(found: "Comparison") -> str:
    """Results side by side, on a terminal drawn by rich; a metric a line where a row a line would be too wide."""
    if not on_terminal():
        return found.plain()
    from rich.console import Console

    drawn, console = found.rich(), Console()
    if console.measure(drawn, options=console.options.update(max_width=UNBOUNDED)).maximum <= console.width:
        return rendered(drawn)
    heads, body = found.table()
    turned = [[head, *(line[i] for line in body)] for i, head in enumerate(heads) if i != 1]
    return "\n".join([table(["", *(line[1] for line in body)], turned), *found.legend()])


def size(n: int | float) -> str:
    """Bytes as people read them: `512 B`, `1.4 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:,.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError
