"""One pass over a corpus: everything that is known of every feature of one or several SAEs.

What is held does not grow with the corpus, and no `[tokens, d_sae]` matrix is made: features are read from the sparse
encoding of a forward pass, which is then forgotten.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...base.errors import MatchedNothing
from ...base.running import progress
from ..sources.host import Harvestable, HostSource
from ..sparse import SparseActs
from .active import Active, priority
from .background import Background
from .config import EvidenceConfig
from .held import Context, Held
from .passages import PARTS, Kept, Window, padded, passes, prompts, windows
from .tallies import Tallies

if TYPE_CHECKING:
    from ..sae import SAE


class Evidence:
    """What one SAE's features did."""

    def __init__(self, d_sae: int, config: EvidenceConfig) -> None:
        self.d_sae, self.config = d_sae, config
        self.tallies = Tallies(d_sae)
        self.top = Held(d_sae, config.top, config.span)
        self.reservoir = Held(d_sae, config.reservoir, config.span)
        self.held = {part: Held(d_sae, config.held, config.span) for part in PARTS[1:]}
        self.background = {part: Background(config.background) for part in PARTS}

    @property
    def nbytes(self) -> int:
        """Bytes of the contexts held: fixed when the object is made."""
        return sum(h.nbytes for h in (self.top, self.reservoir, *self.held.values()))

    def update(self, kept: Kept, acts: SparseActs) -> None:
        """Adds one forward pass; row i of `acts` is token i of `kept`."""
        active = Active(acts)
        part = kept.part[active.row]
        self._shown(kept, active, active.entry[part == 0])
        tile = kept.tile(self.config.span)
        for number, name in enumerate(PARTS):
            if number:
                self._held_out(kept, active, active.entry[(part == number) & (tile[active.row] >= 0)], tile, self.held[name])
            first = tile[(kept.part == number) & (tile == kept.row)]
            keys = priority(self.config.seed, kept.document[first], kept.position[first])
            end = torch.minimum(first + self.config.span, kept.end[first])
            self.background[name].offer(kept, active, first, end, keys)

    def _shown(self, kept: Kept, active: Active, entries: Tensor) -> None:
        """Counts, strongest contexts, reservoir: a context is a window's strongest token of a feature."""
        peaks = active.peaks(kept.first[active.row], entries)
        self.tallies.update(active.feature[entries], active.value[entries], active.feature[peaks])
        row = active.row[peaks]
        first = torch.maximum(kept.first[row], row - self.config.before)
        end = torch.minimum(kept.end[row], row + self.config.after + 1)
        self.top.offer(kept, active, peaks, active.value[peaks].double(), first, end)
        self.reservoir.offer(kept, active, peaks, self._priority(kept, active, peaks), first, end)

    def _held_out(self, kept: Kept, active: Active, entries: Tensor, tile: Tensor, held: Held) -> None:
        """Tiles in which a feature fires, cut like the background's, so that nothing but the firing tells them apart."""
        peaks = active.peaks(tile[active.row], entries)
        first = tile[active.row[peaks]]
        end = torch.minimum(first + self.config.span, kept.end[first])
        held.offer(kept, active, peaks, self._priority(kept, active, peaks), first, end)

    def _priority(self, kept: Kept, active: Active, entries: Tensor) -> Tensor:
        row = active.row[entries]
        return priority(self.config.seed, kept.document[row], kept.position[row], active.feature[entries])

    def quantiles(self, feature: int) -> list[tuple[int, Context]]:
        """The reservoir's contexts, the strongest first, each with its quantile (0 is the weakest share)."""
        found = self.reservoir.contexts(feature)
        n, q = len(found), self.config.quantiles
        return [((n - 1 - i) * q // n, c) for i, c in enumerate(found)]


class Reading:
    """A corpus as it was read, and the evidence of each SAE."""

    def __init__(self, evidence: dict[str, Evidence], token_policy: dict[str, Any]) -> None:
        self.evidence, self.token_policy = evidence, token_policy
        self.documents = 0
        self.tokens: Int[Tensor, " parts"] = torch.zeros(len(PARTS), dtype=torch.int64)
        """Tokens read a part."""
        self.counts: Int[Tensor, " V"] = torch.zeros(0, dtype=torch.int64)
        """How often each token id occurs in the evidence part."""
        self._sha = hashlib.sha256()

    @property
    def digest(self) -> str:
        """sha256 over the documents, each as its length in bytes (8, little-endian) and its UTF-8 text."""
        return self._sha.hexdigest()

    def numbered(self, texts: Iterable[str]) -> Iterator[tuple[int, str]]:
        """The documents with their numbers, counted and digested as they pass."""
        for text in texts:
            raw = text.encode()
            self._sha.update(len(raw).to_bytes(8, "little") + raw)
            yield self.documents, text
            self.documents += 1

    def count(self, kept: Kept) -> None:
        """Adds a forward pass to the token counts."""
        self.tokens += torch.bincount(kept.part, minlength=len(PARTS))
        new = torch.bincount(kept.token[kept.part == 0], minlength=len(self.counts))
        new[: len(self.counts)] += self.counts
        self.counts = new


@torch.no_grad()
def collect(host: Harvestable, texts: Iterable[str], saes: "Mapping[str, SAE]", config: EvidenceConfig | None = None) -> Reading:
    """Reads `texts` once and fills the evidence of every SAE.

    Documents are cut into windows of `context` tokens as for training; padding and special tokens are left out. Where the host reads
    prompts at a fixed length (a text encoder), a document is a prompt, read whole, with the tokens that count for it. The
    held-out documents (`passages.part_of`) enter nothing but the held-out contexts.

    Args:
        host: The model.
        texts: Documents, read as a stream; of a list the time left is told.
        saes: Hook point -> SAE; `llm.scanning.check_saes` makes it and checks it.
        config: Sizes.

    Raises:
        MatchedNothing: No SAE, or no token in the evidence part.
        NumericsError: NaN or infinity in an SAE's activations.
    """
    config = config or EvidenceConfig()
    if not saes:
        raise MatchedNothing("no SAE given to collect evidence for")
    source = HostSource(host, [], list(saes), context=config.context, forward_tokens=max(config.forward_tokens, config.context))
    reading = Reading({p: Evidence(s.cfg.d_sae, config) for p, s in saes.items()}, dict(source.token_policy))
    numbered = reading.numbered(texts)
    if source.fixed_length is None:
        groups = windows(host.tokenizer, numbered, source.bos, config.context, config.held_out)
    else:
        groups = prompts(host.token_ids, numbered, config.held_out)  # pyright: ignore[reportAttributeAccessIssue]  # hosts of prompts have it
    batches: Iterable[list[Window]] = (batch for group in groups for batch in passes(group, config.forward_tokens))
    if isinstance(texts, Sized):  # then the windows fit, too, and the time left is known
        batches = list(batches)
    pad = next((i for i in (host.tokenizer.pad_token_id, host.tokenizer.eos_token_id) if isinstance(i, int)), 0)
    for batch in progress(batches, desc="evidence", unit="pass"):
        ids, mask = padded(batch, pad, source.fixed_length)
        keep = host.keep_mask(ids, mask)
        kept = Kept.of(batch, ids, keep, int(source.bos is not None))
        if not len(kept.token):
            continue
        acts = host.activations(ids, mask, list(saes))
        reading.count(kept)
        for point, sae in saes.items():
            x = acts[point][keep.to(acts[point].device)]
            reading.evidence[point].update(kept, sae.encode_sparse(x.to(sae.device)))
    if not int(reading.tokens[0]):
        raise MatchedNothing("the texts gave no token to collect evidence from; give more documents, or raise held_out")
    return reading
