"""Harvesting a hook point of a host against the bare truncated forward pass: its modules called by hand, no hook.

    python benchmarks/harvest.py [--model smollm2] [--layer 10] [--rounds 15] [--out harvest.json]

The ratio is that of tokens a second, harvest over bare, in the same run. The bare pass computes embeddings, mask and
rotary table, the layers below, and attention and MLP of the layer asked for; nothing else. Its result must equal the
harvested one.
"""

import argparse
from pathlib import Path

import torch
from _timing import interleaved, quartiles, ratio, store
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from efface.llm import Host, load_model


@torch.no_grad()
def bare(host: Host, ids: Tensor, mask: Tensor, n: int) -> Tensor:
    """`layers.n.mlp_out` of a Llama-like model by hand."""
    base, config = host.base, host.model.config
    x = base.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    causal = create_causal_mask(config=config, inputs_embeds=x, attention_mask=mask, past_key_values=None, position_ids=positions)
    shared = {"position_embeddings": base.rotary_emb(x, position_ids=positions), "attention_mask": causal}
    for layer in base.layers[:n]:
        x = layer(x, position_ids=positions, use_cache=False, **shared)
    layer = base.layers[n]
    x = x + layer.self_attn(hidden_states=layer.input_layernorm(x), position_ids=positions, **shared)[0]
    return layer.mlp(layer.post_attention_layernorm(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    host = load_model(args.model)
    if host.family.name != "llama":
        parser.error(f"--model {args.model}: the bare pass is written for Llama-like models")
    point, n_tokens = f"layers.{args.layer}.mlp_out", args.batch * args.context
    ids = torch.randint(100, host.unembedding().shape[1], (args.batch, args.context))
    mask = torch.ones_like(ids)

    def harvest() -> Tensor:
        return host.activations(ids, mask, [point])[point]

    torch.testing.assert_close(harvest(), bare(host, ids, mask, args.layer), atol=0, rtol=0)
    seconds = interleaved({"bare": lambda: bare(host, ids, mask, args.layer), "harvest": harvest}, args.rounds)
    results: dict[str, object] = {"arguments": {k: str(v) for k, v in vars(args).items() if k != "out"}}
    for name, times in seconds.items():
        results[name] = quartiles([n_tokens / s for s in times])
        print(f"{name:8} {n_tokens / quartiles(times)[1]:9.0f} tokens/s")
    results["harvest_over_bare"] = ratio(seconds["bare"], seconds["harvest"])
    low, middle, high = ratio(seconds["bare"], seconds["harvest"])
    print(f"harvest / bare {middle:.3f} (quartiles {low:.3f} to {high:.3f}; goal 0.95)")
    store(args.out, results)


if __name__ == "__main__":
    main()
