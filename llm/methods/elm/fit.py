"""Fitting ELM: frozen targets away from the expert, adapters that follow them, and stay elsewhere."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....deactivate.edit import Edit
from ...pools import choose
from ...tuning.fit import tuned
from ...tuning.frozen import FrozenFinal, final_hidden, states
from ...tuning.likelihood import distance_to_base
from ...tuning.losses import row_weights
from ...tuning.texts import Batches, Mixed, Row, forget_rows, retain_pools
from ...tuning.trained import Trained
from .config import ElmConfig
from .consistency import continuation_rows
from .math import collapse, erase_loss, eta_ramp, fluency_loss, guided_scores, random_target, target
from .templates import EXPERT, NOVICE, keywords

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ....sae import SAE
    from ...host import Host

SHOWN = 8
"""Forget texts, at most, of which the targets' collapse is told."""


def fit(
    host: "Host",
    concepts: "Sequence[Concept]",
    preserve: Sequence[str] | None = None,
    config: ElmConfig | None = None,
    saes: "Sequence[SAE]" = (),
) -> Edit:
    """Takes concepts out of a language model by adapters that follow its own novice (Gandikota et al., arXiv:2410.02760).

    The host is left as it was. The edit has one `weights` part: a change of rank `rank` of each adapted matrix.

    Args:
        host: The model; edits that lie on it are trained on top of.
        concepts: At least one; each needs what `forget` and `retain` name.
        preserve: Further texts that must stay.
        config: Settings.
        saes: Not read.

    Raises:
        InputError: A concept lacks a field, or a layer is not there.
    """
    config = config or ElmConfig()
    layers = config.layers_of(host.n_layers)
    return tuned(host, concepts, config, "elm", layers, lambda t, c, n: ElmTask(host, t, c, config, preserve or (), n), preserve)


class ElmTask:
    """The three losses for one concept."""

    def __init__(
        self, host: "Host", trained: Trained, concept: "Concept", config: ElmConfig, preserve: Sequence[str] = (), number: int = 0
    ) -> None:
        self.host, self.config, self.seed = host, config, f"{config.seed}/{number}"
        self.counted = config.positions == "counted"
        self.words = keywords(concept.name, tuple(concept.synonyms.get("seen", ())))
        self.read = final_hidden(host)
        self.frozen = FrozenFinal(host, trained.off)
        self.forget = forget_rows(host, concept, config)
        self.batches = Batches([len(r) for r in self.forget], config.batch, f"forget/{self.seed}")
        self.retain = Mixed(retain_pools(host, concept, config, preserve), config.batch, f"retain/{self.seed}") if config.keep else None
        self.prefixed = [self._prefixed(n) for n in range(len(self.forget))]
        self.continued = self._continued(trained, concept, number) if config.fluency else []
        size = config.continuation_batch or config.batch
        self.continued_batches = Batches([len(r) for r in self.continued], size, f"fluency/{self.seed}") if self.continued else None

    def __call__(self, i: int) -> tuple[Tensor, Mapping[str, float]]:
        """The weighted sum of the losses of the i-th micro-batch."""
        c = self.config
        parts: dict[str, Tensor] = {}
        if c.erase:
            parts["erase"] = c.erase * self.erase(self.batches[i], i)
        if self.retain is not None:
            parts["retain"] = c.keep * distance_to_base(self.frozen, self.retain[i], hard=c.retain_loss == "hard", counted=self.counted)
        if self.continued_batches is not None:
            parts["fluency"] = c.fluency * self.fluent([self.continued[n] for n in self.continued_batches[i]])
        return torch.stack(list(parts.values())).sum(), {k: float(v.detach()) for k, v in parts.items()}

    def erase(self, numbers: Sequence[int], i: int = 0) -> Tensor:
        """Distance to the targets of some forget texts."""
        q = self.targets(numbers, i)
        rows = [self.forget[n] for n in numbers]
        hidden = states(self.host, self.read, [r.ids for r in rows])
        student = self.host.head(torch.cat([h[r.places(self.counted)] for h, r in zip(hidden, rows, strict=True)])).float()
        weights = row_weights([len(t) for t in q]) if self.counted else None
        return erase_loss(student, torch.cat(q).to(student.device), self.config.erase_loss, weights)

    @torch.no_grad()
    def targets(self, numbers: Sequence[int], i: int = 0) -> list[Tensor]:
        """The target q of some forget texts at the positions that are taken, from the frozen host."""
        c = self.config
        at = [range(len(self.forget[n]))[self.forget[n].places(self.counted)] for n in numbers]
        if c.action == "random":
            size = self.host.unembedding().shape[1]
            seeds = [random.Random(f"noise/{self.seed}/{i}/{n}").getrandbits(63) for n in numbers]
            return [random_target(len(p), size, torch.Generator().manual_seed(s)) for p, s in zip(at, seeds, strict=True)]
        plain = self.frozen([self.forget[n].ids for n in numbers])
        led = [self.frozen.behind(*zip(*(self.prefixed[n][k] for n in numbers), strict=True)) for k in (0, 1)] if c.guided else []
        dtype = torch.float32 if c.preset == "efface" else torch.float64  # the code's; a target without a far tail needs none
        # one product for all texts: at one to three positions a text, reading the unembedding is what it costs
        taken = [
            h[-len(own) :][places.start : places.stop] for read in (plain, *led) for h, own, places in zip(read, plain, at, strict=True)
        ]
        logits = self.host.head(torch.cat(taken)).split([len(h) for h in taken])
        bases, experts, novices = (logits[k * len(at) : (k + 1) * len(at)] for k in (range(3) if led else (0, 0, 0)))
        found = []
        for places, own, base, expert, novice in zip(at, plain, bases, experts, novices, strict=True):
            eta = eta_ramp(len(own), c.eta, c.eta_start)[places.start : places.stop]
            scores = guided_scores(base, expert, novice, eta, c.temperature, c.action, dtype)
            found.append(target(base, scores, c.top_k, c.topk_mode))
        return found

    def fluent(self, rows: Sequence[Row]) -> Tensor:
        """Cross-entropy of the continuations, mean over rows."""
        found = []
        for row, hidden in zip(rows, states(self.host, self.read, [r.ids for r in rows]), strict=True):
            first = row.start - 1
            logits = self.host.head(hidden[first:]).float()
            found.append(fluency_loss(logits, torch.tensor(row.ids[first:], device=logits.device), 1))
        return torch.stack(found).mean()

    def evidence(self) -> dict[str, Any]:
        """How many texts, and what becomes of the targets."""
        numbers = list(dict.fromkeys([*self.batches[0], *self.batches[1]]))[:SHOWN]
        rows = [self.forget[n] for n in numbers]
        with torch.no_grad():
            hidden = self.frozen([r.ids for r in rows])
            base = self.host.head(torch.cat([h[r.places(self.counted)] for h, r in zip(hidden, rows, strict=True)]))
        return {
            "keywords": self.words,
            "forget texts": len(self.forget),
            "retain texts": [len(p) for p in self.retain.pools] if self.retain else [],
            "continuations": len(self.continued),
            "targets": collapse(torch.cat(self.targets(numbers)).to(base.device), base),
        }

    def _prefixed(self, n: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Beginning and what stands behind it, for the expert and for the novice; the templates by lot, once a text.

        Token ids are joined. The authors join strings, whose border may become one token (`compat=official`).
        """
        rng = random.Random(f"templates/{self.seed}/{n}")
        beginnings = [rng.choice(t).replace("{c}", self.words) for t in (EXPERT, NOVICE)]
        row = self.forget[n].ids
        if self.config.compat == "official":
            text = str(self.host.tokenizer.decode(list(row), skip_special_tokens=True))
            return [((), tuple(ids)) for ids in self.host.token_ids([b + text for b in beginnings])]
        bos = int(not self.host.sink_is_text)  # at whose place the last token of the beginning stands
        split = ((tuple(ids[: len(ids) - bos]), ids[len(ids) - bos :]) for ids in self.host.token_ids(beginnings))
        return [(shared, (*last, *self._without_bos(row))) for shared, last in split]

    def _without_bos(self, row: Sequence[int]) -> list[int]:
        """A row without the BOS that the tokenizer puts before every text."""
        return list(row if self.host.sink_is_text else row[1:])

    def _continued(self, trained: Trained, concept: "Concept", number: int) -> list[Row]:
        c = self.config
        prompts = choose(self.forget, c.continuations or None, c.seed)
        if c.fluency_texts == "random":
            (texts,) = retain_pools(self.host, concept, dataclasses.replace(c, retain=("general",)))
            added = [self._without_bos(texts[n % len(texts)].ids)[: c.continuation_tokens] for n in range(len(prompts))]
            return [Row((*p.ids, *new), len(p)) for p, new in zip(prompts, added, strict=True)]
        with trained.off():
            seed = c.seed + 1_000_003 * number
            return continuation_rows(
                self.host, prompts, self.words, c.continuation_tokens, c.gamma, seed, drop_first=c.compat == "official"
            )
