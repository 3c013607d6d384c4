"""Tiny real transformers models with random weights and a word tokenizer: `tiny_host("llama")`."""

from functools import cache
from typing import cast

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from efface.llm.host import Host

SPECIALS = ("<unk>", "<bos>", "<eos>", "<pad>")
D_MODEL, D_MLP, N_LAYERS = 32, 64, 3
_TEXT = """
the a an of and to in is was are were be been it he she they we you I his her their its my your this that these those
not no yes or but if then so as at by for from with on off up down over under into out about after before again all
any both each few more most other some such only own same than too very can will just do does did has have had who
what when where which why how one two three four five six seven eight nine ten first second last new old good bad
great small big long short high low hot cold red blue green black white dark bright young early late man woman boy
girl child children people king queen prince friend mother father brother sister teacher student doctor wizard witch
magic wand spell potion broom castle school owl dragon Harry Potter Hogwarts Ron Hermione Dumbledore Voldemort Gandalf
Frodo ring sword knight story book page word letter song music piano guitar violin drum orchestra symphony concert
composer Mozart Beethoven dog cat horse bird fish wolf lion puppy tail bark sheep cow tree flower grass river lake sea
ocean mountain hill sky sun moon star stars planet planets earth Mars Jupiter Venus telescope galaxy orbit comet night
day morning evening year week hour minute time life death world city town village house home room door window table
chair bed kitchen bread milk water tea coffee apple orange cheese meat soup salt sugar cook oven Rome Caesar emperor
senate legion Latin empire Paris London Berlin France England Germany Italy Spain capital country war peace army
soldier gun rifle bullet plane pilot airport wing engine car road train ship boat wheel ball bat game team player
pitcher inning baseball football win lose play run walk go went come came see saw look say said says tell told ask
asked give gave take took make made find found think thought know knew want wanted like liked love loved live lived
read write wrote open opened close closed eat ate drink sleep fly flew fall fell grow grew begin began end ended work
worked help called tooth teeth dentist crown filling gum Christmas gift Santa snow winter summer spring autumn rain
wind fire ice gold silver iron stone wood The A An It He She They We In On At This That There What Who When Where
Which How Question Answer name names thing things place part number many much every always never often there here now
today tomorrow yesterday because . , ? ! : ; - ' "
"""
WORDS = tuple(_TEXT.split())


@cache
def tiny_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """About 470 English words, with and without a leading space («▁dog», «dog»), else letters; `<bos>` if `bos`.

    It shares the habits of real tokenizers: one leading space belongs to the word, text survives encode and decode.
    """
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!:;-'\"()▁\n"
    plain = list(dict.fromkeys(WORDS))
    pieces = dict.fromkeys([*SPECIALS, *letters, *plain, *("▁" + w for w in plain)])
    scores = [(p, -1.0 if len(p) > 1 else -20.0) for p in pieces]
    core = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    core.decoder = decoders.Replace("▁", " ")
    core.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    unk, start, end, pad = SPECIALS
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token=unk, bos_token=start, eos_token=end, pad_token=pad)


def tiny_model(family: str, vocab_size: int, n_layers: int = N_LAYERS, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A real class of the family with random weights: d_model 32, d_mlp 64, 4 heads."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "vocab_size": vocab_size, "initializer_range": 0.15}
    common = {
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
    }
    grouped = {**ids, **common, "num_key_value_heads": 2, "max_position_embeddings": 256}
    gemma = {**grouped, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}
    gpt2 = {"n_embd": D_MODEL, "n_inner": D_MLP, "n_layer": n_layers, "n_head": 4, "n_positions": 256}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    makers = {
        "llama": (LlamaConfig, LlamaForCausalLM, grouped),
        "mistral": (MistralConfig, MistralForCausalLM, {**grouped, "sliding_window": 64}),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {**grouped, "tie_word_embeddings": True}),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM, {**grouped, "head_dim": 8}),
        "gemma2": (Gemma2Config, Gemma2ForCausalLM, gemma),
        "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, gemma),
        "gpt2": (GPT2Config, GPT2LMHeadModel, {**ids, **gpt2, **off}),
        "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {**ids, **common, "max_position_embeddings": 256}),
    }
    config_class, model_class, settings = makers[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**{**settings, **overrides}))
        for name, p in model.named_parameters():  # norms start at a constant gain: make it tell
            if name.endswith("weight") and ("norm" in name or "ln_" in name):
                p.data += 0.3 * torch.randn_like(p)
    return model.eval()


FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox")


def tiny_host(
    family: str = "llama",
    *,
    n_layers: int = N_LAYERS,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    bos: bool = True,
    **overrides: object,
) -> Host:
    """A new host each time (safe to edit): English words, d_model 32, d_mlp 64, 3 layers. CPU, milliseconds."""
    tokenizer = tiny_tokenizer(bos)
    model = tiny_model(family, len(tokenizer), n_layers, seed, **overrides)
    cast(torch.nn.Module, model).to(dtype)
    return Host(model, tokenizer, f"tiny-{family}")
