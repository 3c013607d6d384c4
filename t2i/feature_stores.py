"""Feature stores of a pipeline's SAEs: what every feature of a text encoder fires on, in prompts, with labels and their scores."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import InputError
from ..deactivate.layer import sae_hook_point
from ..llm.feature_stores import fill_stores
from ..llm.scanning import check_saes
from ..sae.evidence.config import EvidenceConfig
from .features import END

if TYPE_CHECKING:
    from ..sae import SAE
    from .host import ImageHost
    from .text import TextReader


def make_stores(
    host: "ImageHost",
    prompts: Iterable[str],
    saes: "Mapping[Path, SAE]",
    config: EvidenceConfig | None = None,
    *,
    other_model: bool = False,
    given: Mapping[int, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Reads `prompts` once and writes a feature store for each SAE; see `llm.feature_stores.make_stores`.

    A prompt's own tokens and EOS count. An encoder promotes no tokens, so that there are none of those. Labels are of words alone.

    Raises:
        InputError: A store is there already, an SAE does not fit, they belong to several text encoders, or labels by the host are asked for.
    """
    config = config or EvidenceConfig()
    if config.labels != "words":
        raise InputError(f"labels={config.labels}: a pipeline writes no words; leave it out, or use labels=words")
    for out in saes:
        if out.exists():
            raise InputError(f"--out {out} exists already; choose another name or remove it")
    reader = host.reader([sae_hook_point(s) for s in saes.values()])
    places = check_saes(reader, list(saes.values()), other_model=other_model)  # pyright: ignore[reportArgumentType]: it reads as a language host does
    lines = (line.strip() for text in prompts for line in text.splitlines() if line.strip())
    pieces = spelled(reader, range(len(reader.tokenizer)))
    return fill_stores(reader, lines, dict(zip(saes, places.items(), strict=True)), config, pieces, lambda *_: None, given)


def spelled(reader: "TextReader", ids: Sequence[int]) -> list[str]:
    """Strings of tokens that read as the prompt when they are put together: a space where a word ends (CLIP) or begins (T5)."""
    ends = {reader.tokenizer.eos_token_id, reader.tokenizer.pad_token_id}
    names = reader.tokenizer.convert_ids_to_tokens(list(ids))
    return [END if i in ends else str(n).replace("</w>", " ").replace("▁", " ") for i, n in zip(ids, names, strict=True)]
