"""Writes the embedded corpus and the general pool: SmolLM2-135M-Instruct on some 4,500 topics, sampled on a CPU.

    python -m efface.llm.corpus.write --model FOLDER --out OUT --docs 9000 [--pool 2400] [--threads 1]

Resumable: one JSONL shard a batch, seeded by its number; a shard that exists is left alone. `pack.py` filters and compresses the result.
Sampling follows SmolLM2's card apart from the temperature (0.9, top-k 50): variety is what an SAE's corpus needs.
"""

import argparse
import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

ANGLES = (
    "{}",
    "the history of {}",
    "a beginner's first experience with {}",
    "what most people don't know about {}",
    "why {} matters to people",
)
FORMS = (
    "Write a short, factual paragraph about {}.",
    "Explain {} to a child in simple words.",
    "Write a very short story. It should be about {}.",
    "Write three questions and answers about {}.",
    "Describe {} in a few plain sentences.",
    "Write a short dialogue between two friends about {}.",
    "List some facts about {} in full sentences.",
)
BATCH = 192
MAX_NEW_TOKENS = 140
TEMPERATURE = 0.9
TOP_K = 50


def subjects(path: Path | None = None) -> dict[str, list[str]]:
    """Area -> subjects, from `subjects.txt`; the marks `*` and `+` stay on the area's name."""
    lines = (path or Path(__file__).with_name("subjects.txt")).read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines if line and not line.startswith("#"))
    return {area: [s.strip() for s in rest.split(";")] for area, rest in pairs}


def plan(n_docs: int, *, pool: bool, seed: int = 0) -> list[dict[str, str]]:
    """`n_docs` writing tasks; every (subject, angle) once before any comes twice, the form drawn at random."""
    rng = random.Random(f"{seed}/{pool}")
    areas = {a: s for a, s in subjects().items() if a.startswith("+") or not pool}
    topics = [(area, angle.format(s)) for area, ss in areas.items() for s in ss for angle in ANGLES]
    tasks: list[dict[str, str]] = []
    while len(tasks) < n_docs:
        rng.shuffle(topics)
        tasks += [{"area": a.lstrip("*+"), "topic": t, "prompt": rng.choice(FORMS).format(t)} for a, t in topics]
    return tasks[:n_docs]


def grouped_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):  # noqa: D103
    # One query a row: two batched products over the key-value groups beat the fused kernel several times on a CPU.
    import torch

    if query.shape[2] > 1:
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
        return out.transpose(1, 2).contiguous(), None
    b, h, _, d = query.shape
    q = query.reshape(b, key.shape[1], -1, d)
    scores = q @ key.transpose(2, 3) * scaling  # [b kv groups t]
    if attention_mask is not None:
        scores = scores + attention_mask
    return (scores.softmax(-1) @ value).reshape(b, 1, h, d), None


class Writer:
    """SmolLM2 behind `write(prompts, seed) -> texts`."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import (
            AttentionInterface,
            AttentionMaskInterface,
            AutoModelForCausalLM,
            AutoTokenizer,
        )
        from transformers.masking_utils import eager_mask

        AttentionInterface.register("grouped", grouped_attention)
        AttentionMaskInterface.register("grouped", eager_mask)  # without it no mask at all is made
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.model.set_attn_implementation("grouped")

    def write(self, prompts: list[str], seed: int) -> list[str]:
        """The answers to `prompts`, sampled."""
        import torch

        chats = [[{"role": "user", "content": p}] for p in prompts]
        asked = [self.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
        batch = self.tokenizer(asked, return_tensors="pt", padding=True, add_special_tokens=False)
        torch.manual_seed(seed)
        tokens, mask, cache = batch.input_ids, batch.attention_mask, None
        written, done = [], torch.zeros(len(prompts), dtype=torch.bool)
        with torch.inference_mode():
            for _ in range(MAX_NEW_TOKENS):
                positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
                out = self.model(
                    input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                cache = out.past_key_values
                top = out.logits[:, -1].float().topk(TOP_K)  # drawing among the 50 kept spares 49,102 random numbers a row
                drawn = torch.multinomial((top.values / TEMPERATURE).softmax(-1), 1)
                tokens = top.indices.gather(1, drawn).masked_fill(done[:, None], self.tokenizer.eos_token_id)
                done |= tokens[:, 0] == self.tokenizer.eos_token_id
                written.append(tokens)
                mask = torch.cat([mask, torch.ones_like(tokens)], 1)
                if done.all():
                    break
        return self.tokenizer.batch_decode(torch.cat(written, 1), skip_special_tokens=True)


def batches(tasks: list[dict[str, str]]) -> Iterator[tuple[int, list[dict[str, str]]]]:
    """Tasks in numbered batches."""
    for i in range(0, len(tasks), BATCH):
        yield i // BATCH, tasks[i : i + BATCH]


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--model", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--docs", type=int, default=9000)
    args.add_argument("--pool", type=int, default=2400)
    args.add_argument("--first", type=int, default=0, help="number of the first corpus shard: those before it are packed already")
    args.add_argument("--threads", type=int, default=1)
    options = args.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    writer: Writer | None = None
    options.out.mkdir(parents=True, exist_ok=True)
    for kind, n in (("corpus", options.docs), ("pool", options.pool)):
        for number, tasks in batches(plan(n, pool=kind == "pool")):
            shard = options.out / f"{kind}-{number:04d}.jsonl"
            if shard.exists() or (kind == "corpus" and number < options.first):
                continue
            writer = writer or Writer(options.model)
            seed = int(hashlib.sha256(f"{kind}/{number}".encode()).hexdigest()[:8], 16)
            texts = writer.write([t["prompt"] for t in tasks], seed)
            part = shard.with_suffix(".part")
            part.write_text("".join(json.dumps({**t, "text": x}) + "\n" for t, x in zip(tasks, texts, strict=True)))
            os.replace(part, shard)


if __name__ == "__main__":
    main()
