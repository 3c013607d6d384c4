"""Greedy coordinate gradient beside nanoGCG: the same loss and substitutions, what either finds with one budget, and its time.

    python benchmarks/gcg.py --peer FOLDER [--model synthetic] [--concept synthetic/river] [--questions 8] [--seeds 3] [--json FILE]

`--peer` names a folder that holds nanogcg (0.3.0, MIT). The model is unedited; the target of a question is the wrong option that it finds least likely, its prompt
that of `slot_of`. Both have the same first suffix, tokens, steps, width and top-k, and are run in turn, question by question and seed by seed, who is first by turns too. nanoGCG goes on from each step's
best candidate, be it worse than the last one, where we keep the best so far (`rises` counts such steps); of either the best so far is judged, after a quarter, half, three quarters and all of the steps.

What is set for nanoGCG's sake: its tokenizer is a copy with a template that is the prompt alone; its forbidden tokens are ours; no messages, no progress bar; `use_prefix_cache` is off, since
its cache is written for transformers up to 4.47; and the heap is frozen (`gc.freeze`), since it collects garbage twice a step, which in a process with much loaded takes longer than the step. `collection` has
the seconds of one collection with the heap as it was, and frozen.

Parity is measured on suffixes drawn by lot: largest difference of the loss, and the share of each position's top-k substitutions that both name (beside it, as a control, the share that two suffixes have in common).
A difference of losses is the mean over seeds, question by question; the interval is Student's over questions. The last loss is scored anew by our `Objective`.
"""

import argparse
import copy
import gc
import importlib
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _timing import machine, quartiles, ratio

from efface.base.errors import InputError, MatchedNothing
from efface.base.files import read_json, write_json
from efface.deactivate import Concept
from efface.deactivate.concept import Question
from efface.deactivate.evaluation.statistics import t_interval
from efface.llm import load_model
from efface.llm.attacks.config import GcgConfig
from efface.llm.attacks.gcg import Gcg, first_suffix, substitutions
from efface.llm.attacks.objective import Objective, allowed_tokens, own_ids, pieces, slot_of
from efface.llm.attacks.suffixes import Search, generator, marks, texts_of, works

OURS, THEIRS = "efface", "nanoGCG"
PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
Ids = list[int]


class Started(Search):
    """A search whose suffix of chance is one token, again and again, that survives as text: both sides can begin with it."""

    def random(self, n: int) -> Ids:
        """`n` times the first token of a random order whose text has the same tokens again, alone and in the prompt."""
        host = self.objective.host
        for place in torch.randperm(len(self.allowed), generator=self.generator).tolist():
            ids = [int(self.allowed[place])] * n
            text, same = texts_of(host, self.slot, [ids])[0]
            if same and own_ids(host, text) == ids:
                return ids
        raise MatchedNothing("no token can be repeated as text")


@dataclass
class Peer:
    """nanoGCG on a host."""

    host: Any
    module: Any
    tokenizer: Any

    def on(self, search: Search, config: GcgConfig, start: Ids) -> tuple[Any, Callable[[], Any]]:
        """Its attack with the search's tokens and start, and what runs it."""
        text = texts_of(self.host, search.slot, [start])[0][0]
        settings = self.module.GCGConfig(
            num_steps=config.steps, optim_str_init=text, search_width=config.width, topk=config.top_k,
            use_prefix_cache=False, allow_non_ascii=True,
        )  # fmt: skip
        attack = self.module.GCG(self.host.model, self.tokenizer, settings)
        forbidden = torch.ones(len(search.objective.matrix), dtype=torch.bool)
        forbidden[search.allowed] = False
        attack.not_allowed_ids = forbidden.nonzero()[:, 0]
        target = f" {search.slot.question.answer.strip()}"
        return attack, lambda: attack.run(search.slot.prompt("{optim_str}"), target)


def peer_on(host: Any, folder: Path) -> Peer:
    """Nanogcg of a folder, silent."""
    sys.path.insert(0, str(folder))
    module: Any = importlib.import_module("nanogcg.gcg")
    logging.getLogger("nanogcg").setLevel(logging.ERROR)
    module.tqdm = lambda steps: steps
    tokenizer = copy.deepcopy(host.tokenizer)
    tokenizer.chat_template = PLAIN
    return Peer(host, module, tokenizer)


def unlikely(host: Any, question: Question, form: str, config: GcgConfig) -> Question:
    """The question with the least likely of its wrong options as answer."""
    objective = Objective(host, slot_of(host, question, form), config)
    with torch.no_grad():
        means = objective.means(objective.embed([])[None])[0]
    means[objective.slot.right] = float("inf")
    return replace(question, answer=question.options[int(means.argmin())])


def parity(peer: Peer, search: Search, config: GcgConfig, suffixes: int) -> dict[str, float]:
    """Largest difference of the loss, least and mean share of substitutions that both name, and the share of those of two suffixes.

    Raises:
        InputError: The prompts' tokens are not the same.
    """
    objective, slot = search.objective, search.slot
    attack, run = peer.on(search, replace(config, steps=1), first_suffix(search, config.length))
    run()  # lays out the prompt
    theirs = [attack.before_embeds, attack.after_embeds, attack.target_embeds]
    laid = objective.embed(slot.head), objective.embed(slot.tail), objective.embed(slot.options[slot.right])
    if not all(a.shape[1:] == b.shape and torch.equal(a[0], b) for a, b in zip(theirs, laid, strict=True)):
        raise InputError(f"the prompt of {slot.question.q!r} has other tokens there")
    ids = torch.tensor([[int(search.allowed[i]) for i in torch.randint(len(search.allowed), (config.length,), generator=search.generator)]
                        for _ in range(suffixes)])  # fmt: skip
    before, after, target = (e.expand(suffixes, -1, -1) for e in theirs)
    losses = attack._compute_candidates_loss_original(suffixes, torch.cat([before, objective.embed(ids), after, target], 1))
    apart = float((losses - objective.loss(objective.embed(ids))).abs().max())
    both, chance, last = [], [], None
    for row in ids:
        ours = substitutions(objective, row, search.allowed, config.top_k)
        slope = attack.compute_token_gradient(row[None])[0]
        slope[:, attack.not_allowed_ids] = float("inf")
        found = (-slope).topk(ours.shape[1], dim=1).indices
        both.append(shared(ours, found))
        if last is not None:
            chance.append(shared(ours, last))
        last = found
    return {"loss": apart, "shared": sum(both) / len(both), "shared, least": min(both), "shared, other suffix": sum(chance) / len(chance)}


def shared(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of the entries of each row of `a` that are in that of `b`."""
    return float((a[:, :, None] == b[:, None]).any(2).double().mean())


def searches(peer: Peer, question: Question, form: str, words: list[str], config: GcgConfig, turn: int) -> dict[str, dict[str, Any]]:
    """Contestant -> what it found for a question, and its seconds; `turn` says who is first."""
    host, slot = peer.host, slot_of(peer.host, question, form)
    allowed = allowed_tokens(host, slot, words)
    mine, begun = (Started(Objective(host, slot, config), allowed, generator(config.seed, question)) for _ in range(2))
    start, at = first_suffix(begun, config.length), marks(config.steps, config.points)
    _, attack = peer.on(mine, config, start)

    def ours() -> tuple[Ids, dict[str, Any]]:
        found = Gcg(config).search(mine)
        return list(found[-1].ids), {"curve": [f.loss for f in found]}

    def theirs() -> tuple[Ids, dict[str, Any]]:
        found = attack()
        rises = sum(b > a for a, b in pairwise(found.losses))
        return own_ids(host, found.best_string), {"curve": [min(found.losses[:n]) for n in at], "rises": rises}

    out: dict[str, dict[str, Any]] = {}
    for name, run in ((OURS, ours), (THEIRS, theirs))[:: 1 - 2 * (turn % 2)]:
        torch.manual_seed(config.seed)
        since = time.perf_counter()
        ids, row = run()
        row["seconds"] = (time.perf_counter() - since) / config.steps
        losses = mine.objective.loss(mine.objective.embed(torch.tensor([start, ids]))).tolist()
        row |= {
            "first loss": losses[0],
            "loss": losses[1],
            "works": works(host, slot, [ids])[0],
            "same tokens": texts_of(host, slot, [ids])[0][1],
        }
        out[name] = row
    return out


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all searches: losses on the way, paired differences, successes, seconds a step."""
    ours, theirs = ([r[name] for r in rows] for name in (OURS, THEIRS))
    out: dict[str, Any] = {"searches": len(rows), "first loss": mean([f["first loss"] for f in ours])}
    for name, found in ((OURS, ours), (THEIRS, theirs)):
        curve = [mean(list(losses)) for losses in zip(*(f["curve"] for f in found), strict=True)]
        counts = {key: sum(f[key] for f in found) for key in ("works", "same tokens")}
        out[name] = {
            "curve": curve,
            "loss": mean([f["loss"] for f in found]),
            **counts,
            "seconds a step": quartiles([f["seconds"] for f in found]),
        }
    out["rises"] = sum(f["rises"] for f in theirs)
    out["theirs over ours"] = [difference(rows, n) for n in range(len(ours[0]["curve"]))]
    out["seconds, theirs over ours"] = ratio([f["seconds"] for f in theirs], [f["seconds"] for f in ours])
    return out


def difference(rows: list[dict[str, Any]], point: int) -> dict[str, Any]:
    """By how much their loss is above ours at a point of the curve, with its interval, and in how many searches ours is the lower."""
    by: dict[str, list[float]] = {}
    for r in rows:
        by.setdefault(r["question"], []).append(r[THEIRS]["curve"][point] - r[OURS]["curve"][point])
    all_of = [d for v in by.values() for d in v]
    value = t_interval([mean(v) for v in by.values()], unit="questions")
    return {**asdict(value), "ours lower": sum(d > 0 for d in all_of), "equal": sum(d == 0 for d in all_of)}


def collection() -> dict[str, float]:
    """Seconds of collecting garbage, with the heap as it is and frozen; frozen it stays."""
    seconds = {}
    for name, prepare in (("as it is", gc.collect), ("frozen", gc.freeze)):
        prepare()
        since = time.perf_counter()
        gc.collect()
        seconds[name] = time.perf_counter() - since
    return seconds


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--peer", type=Path, required=True, help="folder that holds nanogcg")
    args.add_argument("--model", default="synthetic")
    args.add_argument("--concept", default="synthetic/river")
    for name, default in (("questions", 8), ("seeds", 3), ("length", 20), ("steps", 20), ("width", 32), ("top-k", 64), ("suffixes", 8)):
        args.add_argument(f"--{name}", type=int, default=default)
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--json", type=Path)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    host, concept = load_model(o.model), Concept.load(o.concept)
    peer, words = peer_on(host, o.peer), pieces(host)
    config = GcgConfig(length=o.length, steps=o.steps, width=o.width, top_k=o.top_k, points=4)
    pool = concept.require("questions", "validation")
    asked = [unlikely(host, q, concept.form, config) for q in pool[:: max(1, len(pool) // o.questions)][: o.questions]]
    out: dict[str, Any] = {"concept": o.concept, "config": asdict(config), "machine": machine(), "collection": collection(), "parity": []}
    for q in asked:
        slot = slot_of(host, q, concept.form)
        search = Started(Objective(host, slot, config), allowed_tokens(host, slot, words), generator(0, q))
        out["parity"].append(parity(peer, search, config, o.suffixes))
        print(f"{q.q!r}, {q.answer!r}: {out['parity'][-1]}", flush=True)
    rows: list[dict[str, Any]] = []
    for seed in range(o.seeds):
        for q in asked:
            rows.append({"question": q.q, "seed": seed, **searches(peer, q, concept.form, words, replace(config, seed=seed), len(rows))})
            print(f"  seed {seed}, {q.q!r}: { ({n: rows[-1][n]['curve'] + [rows[-1][n]['seconds']] for n in (OURS, THEIRS)}) }", flush=True)
    out |= {"rows": rows, **told(rows)}
    for name, figures in told(rows).items():
        print(f"{name}: {figures}", flush=True)
    if o.json:
        write_json(o.json, (read_json(o.json) if o.json.is_file() else {}) | {o.model: out})


if __name__ == "__main__":
    main()
