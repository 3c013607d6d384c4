"""From a host, a corpus and SAEs to their feature stores: evidence, promoted tokens, labels and their scores."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..base.errors import InputError
from ..base.running import progress
from ..deactivate.evaluation.detection import judged, label_report
from ..deactivate.layer import sae_digest
from ..sae.evidence.config import EvidenceConfig
from ..sae.evidence.reading import collect
from ..sae.evidence.write import Lens, write_store
from ..sae.labels.propose import Proposal, propose
from ..sae.labels.words import EvidenceWords, stems
from .features import lens_directions
from .scanning import check_saes
from .vocabulary import extreme_tokens, token_strings
from .written_labels import likelihood_report, write_labels

if TYPE_CHECKING:
    from ..sae import SAE
    from .host import Host


def make_stores(
    host: "Host",
    texts: Iterable[str],
    saes: Mapping[Path, "SAE"],
    config: EvidenceConfig | None = None,
    *,
    other_model: bool = False,
    given: Mapping[int, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Reads `texts` once and writes a feature store for each SAE.

    Args:
        host: The model.
        texts: Documents, read as a stream.
        saes: Where each store goes -> the SAE; different hook points.
        config: Sizes, and who writes labels.
        other_model: Accept SAEs trained on another model.
        given: Feature -> a label of one's own (`sae.labels.files.read_labels`), scored like any other; features that it does not name
            get labels from words. For a single SAE.

    Returns:
        Hook point -> where its store lies, and the report on its labels.

    Raises:
        InputError: A store is there already, or an SAE does not fit the host.
        MatchedNothing: No text to read.
    """
    config = config or EvidenceConfig()
    for out in saes:
        if out.exists():
            raise InputError(f"--out {out} exists already; choose another name or remove it")
    places = check_saes(host, list(saes.values()), other_model=other_model)
    pieces = token_strings(host.tokenizer, torch.arange(host.unembedding().shape[1]))
    return fill_stores(host, texts, dict(zip(saes, places.items(), strict=True)), config, pieces, lens_tokens, given)


def fill_stores(
    host: Any,
    texts: Iterable[str],
    places: Mapping[Path, tuple[str, "SAE"]],
    config: EvidenceConfig,
    pieces: Sequence[str],
    lens_of: Callable[[Any, "SAE", int], Lens | None],
    given: Mapping[int, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """`make_stores` of SAEs that were checked: where each goes -> (hook point, SAE).

    Args:
        host: What reads: a language model, or a text encoder of a pipeline.
        texts: Documents, or prompts.
        places: Folders that are not there yet.
        config: Sizes.
        pieces: The string of every token id.
        lens_of: (host, SAE, k) -> promoted and suppressed tokens, or None.
        given: As of `make_stores`.

    Raises:
        InputError: Labels are given, and several SAEs.
    """
    if given and len(places) != 1:
        raise InputError(f"labels from a file belong to one SAE, and {len(places)} are given; collect them one by one")
    reading = collect(host, texts, dict(places.values()), config)
    reports = {}
    for out, (point, sae) in places.items():
        evidence = reading.evidence[point]
        lens = lens_of(host, sae, config.tokens)
        words = EvidenceWords(evidence, pieces)
        rows, report = label_features(host, words, lens, config, given or {})
        about = {"host": {"name": host.name, "digest": host.digest}, "sae_digest": sae_digest(sae), "labels": report}
        write_store(out, sae, reading, evidence, rows, pieces, lens, about)
        reports[point] = {"out": str(out), "documents": reading.documents, "tokens": reading.tokens.tolist(), "labels": report}
    return reports


@torch.no_grad()
def lens_tokens(host: "Host", sae: "SAE", k: int) -> Lens | None:
    """The `k` tokens that each feature promotes and suppresses most; None where it does not write to the residual stream.

    A feature over the MLP's hidden units writes through the down-projection.
    """
    point = str(sae.card.get("hook_point_out") or sae.card["hook_point"])
    U = host.unembedding()
    directions = sae.W_dec.detach().to(U)
    if point.endswith(".mlp_hidden"):
        _, weight, transposed = host.down_proj(int(point.split(".")[1]))
        directions = directions @ (weight if transposed else weight.T)
        point = point.replace("mlp_hidden", "mlp_out")
    elif point.endswith(".mlp_in"):
        return None
    promoted, suppressed = extreme_tokens(lens_directions(host, point, directions), U, k)
    return promoted.cpu(), suppressed.cpu()


def label_features(
    host: "Host", words: EvidenceWords, lens: Lens | None, config: EvidenceConfig, given: Mapping[int, str]
) -> tuple[list[dict[str, str | float | None]], dict[str, Any]]:
    """A label for every feature of an SAE, as rows of its store, and the report on all of them."""
    d_sae = words.evidence.d_sae
    proposals: list[list[Proposal]] = []
    own = {f: Proposal(text, "file", tuple(stems(text))) for f, text in given.items()}
    for f in progress(range(d_sae), desc="labels", unit="feature"):
        found = own.get(f) or propose(words, f, _promoted(words, lens, f), most=config.words, least=config.least)
        proposals.append([found] if found else [])
    written = write_labels(host, words, [f for f in _chosen(words, config) if f not in own]) if config.labels == "host" else {}
    for f, proposal in written.items():
        proposals[f].append(proposal)
    scored = progress(enumerate(proposals), total=d_sae, desc="scores of labels", unit="feature")
    labels = [judged(words, f, p, config.least) for f, p in scored]
    report = label_report(words, labels, config.least, config.seed)
    if written:
        report["written by the host"] = {
            **_report_of(words, written, config),
            **likelihood_report(host, words, written, config.least, config.seed),
        }
    if own:
        report["from the file"] = _report_of(words, own, config)
    return [label.columns() for label in labels], report


def _report_of(words: EvidenceWords, proposals: Mapping[int, Proposal], config: EvidenceConfig) -> dict[str, Any]:
    """What some proposals alone are worth."""
    alone = [judged(words, f, [proposals[f]] if f in proposals else [], config.least) for f in range(words.evidence.d_sae)]
    return {k: v for k, v in label_report(words, alone, config.least, config.seed).items() if k != "status"}


def _promoted(words: EvidenceWords, lens: Lens | None, feature: int) -> Sequence[str]:
    if lens is None:
        return ()
    ids: Int[Tensor, " k"] = lens[0][feature]
    return words.spelled(ids.tolist())


def _chosen(words: EvidenceWords, config: EvidenceConfig) -> list[int]:
    """Features that get a label from the host: a seeded choice of those whose label can be scored."""
    e, least = words.evidence, config.least
    enough = [
        f
        for f in range(e.d_sae)
        if all(int((h.key[f] > -torch.inf).sum()) >= least and int(words.silence[p].of(f).sum()) >= least for p, h in e.held.items())
    ]
    if config.written and len(enough) > config.written:
        return sorted(random.Random(config.seed).sample(enough, config.written))
    return enough
