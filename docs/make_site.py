"""What the site has besides the pages that lie in this folder: notebooks, a page an eraser, the reference. `conf.py` calls `write`."""

import dataclasses
import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from make_api import PACKAGES, defined, exported

from efface.base.config import field_docs
from efface.deactivate.registry import Method, methods

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
HOSTS = {"llm": "language models", "t2i": "image pipelines", "any": "language models, and the text encoders of image pipelines"}
PARTS = {
    "weights": "weights (permanent: `efface apply`)",
    "adapter": "an adapter",
    "hook": "a layer at run time",
    "projection": "a projection at run time",
    "tokens": "tokens of the prompt",
    "module": "a module",
}
NEEDS = {
    "sae": "an SAE of the host (`efface train` makes one)",
    "gradients": "gradients: it trains",
    "images": "pictures of the concept",
    "questions": "questions about the concept",
    "neighbours": "texts about its neighbours",
    "tokens": "single tokens of the concept",
}


def write() -> None:
    """Writes `notebooks/`, `erasers/` and `reference/` of this folder; files that are as they should be are left alone."""
    for name, text in pages().items():
        path = DOCS / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Path in this folder -> content."""
    made = {f"notebooks/{p.name}": relinked(p.read_text(encoding="utf-8")) for p in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    made |= {f"erasers/{m.name}.md": eraser_page(m) for m in methods()}
    made |= {"erasers/index.md": eraser_index(), "reference/index.md": reference_index()}
    return made | {f"reference/{module}.rst": reference_page(module) for module in modules()}


def relinked(notebook: str) -> str:
    """Links of a notebook to pages, from where it lies on the site."""
    return notebook.replace("](../docs/", "](../")


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    return (
        " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;") if "`" not in text else " ".join(text.split()).replace("|", "\\|")
    )


def default_of(field: dataclasses.Field[Any]) -> str:
    """The default of a setting as it is written on the command line."""
    value = field.default if field.default is not dataclasses.MISSING else None
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value in ("", ()):
        return "empty"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def settings_table(config: type[Any]) -> str:
    """Every setting: name, default, what its docstring says."""
    docs = field_docs(config)
    rows = [f"| `{f.name}` | {default_of(f)} | {cell(docs.get(f.name, ''))} |" for f in dataclasses.fields(config) if f.init]
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows])


def card_of(method: Method) -> Path:
    """The README beside the method's code."""
    spec = find_spec(method.config.partition(":")[0])
    if spec is None or spec.origin is None or not (card := Path(spec.origin).with_name("README.md")).is_file():
        raise SystemExit(f"{method.name}: no README.md beside {method.config}")
    return card


def card_text(method: Method) -> str:
    """The card without its heading."""
    heading, _, body = card_of(method).read_text(encoding="utf-8").partition("\n")
    if not heading.startswith("# "):
        raise SystemExit(f"{card_of(method)}: the first line must be its heading")
    return body


def command_of(method: Method) -> str:
    """A command that fits it with its defaults."""
    image = method.domain == "t2i"
    denoiser = image and method.parts == ("hook",)
    model, concept = ("icons", "icons/dog") if image else ("smollm2", "baseball")
    sae = {True: " --sae saes", False: " --sae icons"}[denoiser or not image] if "sae" in method.needs else ""
    return f"efface erase {method.name} --model {model} --concept {concept}{sae} --out edit"


def eraser_page(method: Method) -> str:
    """One eraser: its row, a command, its card, every setting."""
    config = method.load_config()
    facts = {
        "Paper": method.paper,
        "Works on": HOSTS[method.domain],
        "Makes": "; ".join(PARTS[p] for p in method.parts),
        "Needs": "; ".join(NEEDS[n] for n in method.needs) or "texts with and without the concept",
        "Several concepts in one fit": "yes" if method.several_concepts else "no",
    }
    presets = ", ".join(f"`{p}`" for p in getattr(config, "PRESETS", {}))
    more = f"\n`preset` sets others at once ({presets}): see above. " if presets else "\n"
    return "\n".join(
        [
            f"# {method.name}\n",
            "| | |\n|---|---|",
            *(f"| **{k}** | {cell(v)} |" for k, v in facts.items()),
            f"\n```console\n$ {command_of(method)}\n```\n",
            f'`efface erase {method.name} --help` prints the settings; `--set name=value` changes one. In Python: `efface.erase("{method.name}", host, concept, …)`.\n',
            card_text(method).strip(),
            "\n## All settings\n",
            f"`{config.__name__}`, in `{config.__module__}`.{more}\n",
            settings_table(config),
            "",
        ]
    )


def eraser_index() -> str:
    """The table of erasers."""
    rows = [
        f"| [`{m.name}`]({m.name}.md) | {HOSTS[m.domain].split(',')[0] if m.domain != 'any' else 'any'} | {', '.join(m.parts)} | {', '.join(m.needs) or '–'} | {cell(m.paper)} |"
        for m in methods()
    ]
    head = [
        "# Erasers\n",
        "From the registry, as `efface methods` prints it. What each of them did to which concept, and what that cost, is a matter of figures: [how they are measured](../measuring.md), [what was found](../benchmarks.md).\n",
        "| | works on | changes | needs | paper |\n|---|---|---|---|---|",
    ]
    names = "\n".join(m.name for m in methods())
    return "\n".join(
        [
            *head,
            *rows,
            "\nOne of your own takes a function and a row: [notebook 6](../notebooks/06_your_own_eraser.ipynb).\n",
            f"```{{toctree}}\n:hidden:\n\n{names}\n```\n",
        ]
    )


def modules() -> list[str]:
    """The packages that have public names."""
    return ["efface" if p == "src/efface" else f"efface.{p.replace('/', '.')}" for p in PACKAGES]


def reference_index() -> str:
    """The list of packages."""
    rows = [f"* [`{m}`]({m}.rst): {first_line(m)}" for m in modules()]
    tree = "```{toctree}\n:hidden:\n\n" + "\n".join(modules()) + "\n```\n"
    return "\n".join(
        ["# Reference\n", "Every public name, from its docstring. One line each: [public names](../api.md).\n", *rows, "", tree]
    )


def first_line(module: str) -> str:
    """The first sentence of a package's docstring."""
    return (import_module(module).__doc__ or "").split("\n")[0].rstrip()


def reference_page(module: str) -> str:
    """Directives for each public name of a package; what an earlier page has already is shown again, and indexed there."""
    folder = ROOT / ("src/efface" if module == "efface" else module.removeprefix("efface.").replace(".", "/"))
    parts = [module, "=" * len(module), "", plain(first_line(module)), ""]
    for name in sorted(n for n in exported(folder) if not n.startswith("__")):
        found = getattr(import_module(module), name)
        again = ["   :no-index:"] if any(found is other for other in shown_before(module)) else []
        if inspect.isclass(found):
            parts += [f".. autoclass:: {module}.{name}", "   :members:", *again, ""]
        elif inspect.isroutine(found):
            parts += [f".. autofunction:: {module}.{name}", *again, ""]
        else:  # an alias of a type, whose own docstring is that of the type
            said = defined(folder, name, (folder.parent,)) or (name, "")
            parts += [f".. py:data:: {module}.{name}", "", f"   {plain(said[1])}", ""]
    return "\n".join(parts)


def shown_before(module: str) -> list[object]:
    """The objects of the pages before a package's."""
    earlier = modules()[: modules().index(module)]
    return [getattr(import_module(m), n) for m in earlier for n in import_module(m).__all__ if not n.startswith("__")]


SPANS = re.compile(r"(`+)(.+?)\1", re.DOTALL)


WHOLE = re.compile(r"(?<![^\s>])[^\s<>&]*-[^\s<>&]*(?![^\s<])")
"""A word with a hyphen, a command's option above all: browsers would break the line behind the hyphen."""
LONGEST = 34
"""Letters of code on a line of a narrow screen."""
FIGURES = re.compile(r"(?<=\d) of (?=\d)|(?<=\d), (?=[-\d.]+\])")
"""What parts «2 of 2», and the ends of an interval."""


def unbroken(page: str) -> str:
    """HTML whose lines break nowhere within a word of code that fits on a narrow screen, nor within a figure of a table."""

    def word(found: re.Match[str]) -> str:
        return found.group() if len(found.group()) > LONGEST else f'<span class="whole">{found.group()}</span>'

    def code(found: re.Match[str]) -> str:
        return re.sub(r">[^<]+", lambda text: WHOLE.sub(word, text.group()), found.group())

    def cell_of(found: re.Match[str]) -> str:
        return FIGURES.sub(lambda gap: gap.group().replace(" ", "&#160;"), found.group())

    page = re.sub(r"<(pre|code)\b.*?</\1>", code, page, flags=re.DOTALL)
    return re.sub(r"<td>.*?</td>", cell_of, page, flags=re.DOTALL)


def plain(text: str) -> str:
    """Docstring text (code between single backticks) as reStructuredText."""
    out, end = [], 0
    for found in SPANS.finditer(text):
        out += [escaped(text[end : found.start()]), literal(found.group(2)), *glue(text, found.end())]
        end = found.end()
    return "".join([*out, escaped(text[end:])])


def literal(code: str) -> str:
    """An inline literal; its ends must not be white space."""
    return f"``{code.strip()}``" if code.strip() else ""


def glue(text: str, end: int) -> list[str]:
    """Markup that lets a word follow a literal without a space."""
    return ["\\ "] if end < len(text) and (text[end].isalnum() or text[end] in "`_") else []


def escaped(text: str) -> str:
    """Characters that are no markup in a docstring, and are in reStructuredText."""
    lines = []
    for line in text.split("\n"):
        bullet = re.match(r"\s*\* ", line)
        start = bullet.end() if bullet else 0
        lines.append(line[:start] + re.sub(r"([*|\\])|(?<=\w)(_)(?=\W|$)", lambda m: "\\" + m.group(0), line[start:]))
    return "\n".join(lines)
