"""One complete TopK training step of each package.

Forward, backward, clipping, Adam, decoder constraint, dead counts.

Every maker returns an object with `step(batch) -> None` and `reconstruct(x) -> xhat`. The peers'
steps are those of their own trainers, called through their public classes; where a trainer cannot
run a step alone, its lines are followed. A maker raises ImportError where its package is missing.
"""

import os
from dataclasses import dataclass, field

import torch
from torch import Tensor

from efface.sae.initialise import encoder_scale
from efface.sae.sparse import (
    FusedAdam,
    TopK,
    attach_row_grad,
    decode_on,
    decode_sparse,
    encode_on,
    encode_topk,
    select,
)


@dataclass(frozen=True)
class Setting:
    """What all contestants share."""

    d_in: int
    d_sae: int
    batch: int
    k: int = 32
    lr: float = 3e-4
    total_steps: int = 10_000
    dead: Tensor | None = field(default=None, compare=False)
    """Latents (int64, ascending) held dead for AuxK; `None`: AuxK has nothing to do."""

    def dead_mask(self) -> Tensor:
        """The same as a mask."""
        mask = torch.zeros(self.d_sae, dtype=torch.bool)
        if self.dead is not None:
            mask[self.dead] = True
        return mask


class Ours:
    """The sparse path: unit decoder rows, gradients along them removed.

    Global norm clipped to 1.
    """

    def __init__(self, s: Setting, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        rows = torch.randn(s.d_sae, s.d_in, generator=g)
        rows /= rows.norm(dim=1, keepdim=True)
        self.s = s
        self.W_enc = torch.nn.Parameter(rows.clone().T)
        self.W_dec = torch.nn.Parameter(rows)
        self.b_enc = torch.nn.Parameter(torch.zeros(s.d_sae))
        self.b_dec = torch.nn.Parameter(torch.zeros(s.d_in))
        attach_row_grad(self.W_enc)
        attach_row_grad(self.W_dec)
        groups = [
            {"params": [self.W_dec], "unit_rows": True, "remove_parallel": True},
            {"params": [self.W_enc, self.b_enc, self.b_dec]},
        ]
        self.optimizer = FusedAdam(groups, lr=s.lr, max_norm=1.0)
        self.silent_for = torch.zeros(s.d_sae, dtype=torch.int64)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """What the trainer does before the first step: the encoder's scale from one batch."""
        self.W_enc.mul_(encoder_scale(x, self.W_enc, self.b_enc, self.W_dec, self.s.k))

    def step(self, x: Tensor) -> None:
        """One step."""
        self.optimizer.zero_grad()
        sae_in = (x - self.b_dec).detach()
        selectors = [TopK(self.s.k)]
        if self.s.dead is not None:
            selectors.append(TopK(x.shape[1] // 2, among=self.s.dead))
        acts, *aux = select(sae_in, self.W_enc, self.b_enc, *selectors)
        values = encode_on(acts, sae_in, self.W_enc, self.b_enc, b_pre=self.b_dec)
        error = decode_on(acts, values, self.W_dec, self.b_dec) - x
        loss = error.pow(2).sum(1).mean()
        for extra in aux:
            z = encode_on(extra, sae_in, self.W_enc, self.b_enc, b_pre=self.b_dec)
            left = decode_on(extra, z, self.W_dec) + error.detach()
            loss = loss + left.pow(2).sum(1).mean() / 32
        loss.backward()
        self.optimizer.step()
        self.silent_for += len(x)
        self.silent_for[acts.counts() > 0] = 0

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstruction with the current weights."""
        acts = encode_topk(x - self.b_dec, self.W_enc, self.b_enc, self.s.k)
        return decode_sparse(acts, self.W_dec, self.b_dec)


class SAELens:
    """sae-lens' TopKTrainingSAE.

    Stepped as `SAETrainer._train_step` does (its norm clipping and firing counts included).
    """

    def __init__(self, s: Setting, seed: int = 0) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.saes.sae import TrainStepInput

        torch.manual_seed(seed)
        self.s, self.input = s, TrainStepInput
        self.sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=s.d_in, d_sae=s.d_sae, k=s.k))
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=s.lr)
        self.silent_for = torch.zeros(s.d_sae)
        self.frequency = torch.zeros(s.d_sae)

    def step(self, x: Tensor) -> None:
        """One step."""
        dead = None if self.s.dead is None else self.s.dead_mask()
        output = self.sae.training_forward_pass(self.input(x, {}, dead, 0, False))
        with torch.no_grad():
            firing = output.feature_acts.bool().float()
            did_fire = firing.sum(-2).bool()
            if did_fire.is_sparse:
                did_fire = did_fire.to_dense()
            self.silent_for += 1
            self.silent_for[did_fire] = 0
            self.frequency += firing.sum(0)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstruction with the current weights."""
        return self.sae(x)


class Sparsify:
    """eai-sparsify's SparseCoder and decoder constraint, with torch's Adam (not its default)."""

    def __init__(self, s: Setting, seed: int = 0) -> None:
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # no GPU: its own fallback
        from sparsify import SparseCoder, SparseCoderConfig

        torch.manual_seed(seed)
        self.s = s
        self.sae = SparseCoder(s.d_in, SparseCoderConfig(num_latents=s.d_sae, k=s.k))
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=s.lr)
        self.silent_for = torch.zeros(s.d_sae, dtype=torch.int64)

    def step(self, x: Tensor) -> None:
        """One step."""
        self.sae.set_decoder_norm_to_unit_norm()
        dead = None if self.s.dead is None else self.s.dead_mask()
        output = self.sae(x, dead_mask=dead)
        (output.fvu + output.auxk_loss / 32).backward()
        self.silent_for += len(x)
        self.silent_for[output.latent_indices.flatten()] = 0
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstruction with the current weights."""
        return self.sae(x).sae_out


class DictionaryLearning:
    """dictionary_learning's TopKTrainer.update.

    Dead latents are those it has not seen fire for its own window.
    """

    def __init__(self, s: Setting, seed: int = 0) -> None:
        from dictionary_learning.trainers.top_k import TopKTrainer

        self.s, self.count = s, 1
        self.trainer = TopKTrainer(
            steps=s.total_steps,
            activation_dim=s.d_in,
            dict_size=s.d_sae,
            k=s.k,
            layer=0,
            lm_name="none",
            lr=s.lr,
            warmup_steps=0,
            seed=seed,
            device="cpu",
        )

    def step(self, x: Tensor) -> None:
        """One step."""
        if self.s.dead is not None:
            self.trainer.num_tokens_since_fired[self.s.dead] = self.trainer.dead_feature_threshold
        self.trainer.update(self.count, x)
        self.count += 1

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstruction with the current weights."""
        return self.trainer.ae.decode(self.trainer.ae.encode(x, use_threshold=False))


PEERS = {"sae-lens": SAELens, "eai-sparsify": Sparsify, "dictionary-learning": DictionaryLearning}
"""Row name to contestant; a row is left out by name where the package is not installed."""
