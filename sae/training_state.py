"""One SAE in training: weights, optimiser, dead counts, input scale; a step, and everything needed to go on from it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..base.errors import ArtefactError, InputError
from . import distributed
from .config import CALIBRATED, TOPK_FAMILY, SAEConfig, TrainConfig
from .initialise import encoder_scale, geometric_median, input_scale, whitening
from .losses import Coefficients, Loss, variance
from .sae import SAE
from .schedules import dead_window, ramp
from .sources.base import Batch, Plain
from .sparse import FusedAdam, attach_row_grad, detach_row_grad

SPARSE = (*TOPK_FAMILY, "jumprelu")
"""Architectures that touch only active latents: their weight gradients go through `RowGrad`."""

SPARSITY_LOSSES = {"relu": "l1_loss", "gated": "l1_loss", "jumprelu": "l0_loss"}
"""SAELens' names of the sparsity terms."""


@dataclass(frozen=True)
class HookPair:
    """Where an SAE reads and what it reconstructs; the same for an autoencoder."""

    read: str
    write: str

    def vectors(self, batch: Batch, like: Tensor) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
        """Input and target of a batch, on the device and in the dtype of `like`."""
        x = batch[self.read].to(like)
        return x, x if self.read == self.write else batch[self.write].to(like)


class Trainee:
    """An SAE with what its training needs beside it.

    Args:
        cfg: The SAE.
        config: The run.
        hooks: Where its vectors stand in a batch.
        device: Where it is trained.
    """

    def __init__(self, cfg: SAEConfig, config: TrainConfig, hooks: HookPair, device: torch.device) -> None:
        self.cfg, self.config, self.hooks = cfg, config, hooks
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.sae = SAE(cfg).to(device)
        self.scale_in = self.scale_out = 1.0
        if config.normalize == "whiten" and hooks.read != hooks.write:
            raise InputError("normalize=whiten is for autoencoders: a transcoder reads one space and writes another; use unit")
        self.white: tuple[Tensor, Tensor] | None = None
        self.vectors_seen = 0
        self.since_fired = torch.zeros(cfg.d_sae, dtype=torch.int64, device=device)
        self.window = dead_window(config.n_steps, config.batch, config.dead_window)
        if cfg.architecture in SPARSE:
            attach_row_grad(self.sae.W_enc)
            attach_row_grad(self.sae.W_dec)
        rest = [p for p in self.sae.parameters() if p is not self.sae.W_dec]
        decoder = {"params": [self.sae.W_dec], "unit_rows": config.unit_decoder, "remove_parallel": config.unit_decoder}
        self.optimizer = FusedAdam([{"params": rest}, decoder], lr=config.lr, betas=config.betas, eps=config.eps, max_norm=config.clip)

    @torch.no_grad()
    def start(self, sample: Batch) -> None:
        """Sets the scales from a sample, and from one batch of it `b_dec` and the TopK family's encoder.

        `b_dec` to the geometric median of the scaled targets (*Scaling and evaluating sparse autoencoders*, Gao et al., 2024,
        App. A.1), an autoencoder's encoder to the scale at which it reconstructs best.
        """
        x, y = self.hooks.vectors(sample, self.sae.b_dec)
        if self.config.normalize == "whiten":
            self.white = whitening(distributed.gather_rows(x), self.config.whiten_floor)
            x = y = x @ self.white[0]
        normalize, first = self.config.normalize, self.config.batch // distributed.world()
        self.scale_in = self.scale_out = input_scale(distributed.gather_rows(x), normalize)
        if self.hooks.read != self.hooks.write:
            self.scale_out = input_scale(distributed.gather_rows(y), normalize)
        targets = distributed.gather_rows(y[:first]) * self.scale_out
        if self.config.init_b_dec:
            self.sae.b_dec.copy_(geometric_median(targets))
        if self.cfg.architecture in TOPK_FAMILY and self.hooks.read == self.hooks.write:
            inputs = self.sae.center(targets)
            self.sae.W_enc.mul_(encoder_scale(inputs, self.sae.W_enc, self.sae.b_enc, self.sae.W_dec, self.cfg.k))

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents that have been silent for the window."""
        return self.since_fired >= self.window

    def step(self, batch: Batch, step: int, lr: float, log: bool) -> dict[str, float]:
        """One update with the batch of step `step` (from 0).

        Returns:
            With `log` the batch's figures under SAELens' names, else nothing.

        Raises:
            NumericsError: The loss is not finite.
        """
        x, y = self.hooks.vectors(batch, self.sae.b_dec)
        y = (y if self.white is None else y @ self.white[0]) * self.scale_out
        x = y if self.hooks.read == self.hooks.write else x * self.scale_in
        config = self.config
        sparsity = config.l1 * ramp(step, round(config.l1_warmup * config.n_steps))
        loss = self.sae.training_forward(x, y, self.dead, Coefficients(sparsity, config.auxk_coef, config.pre_act_coef))
        self.optimizer.zero_grad()
        loss.total.backward()
        distributed.average_gradients(self.sae.parameters())
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.vectors_seen += config.batch
        self.since_fired += config.batch
        self.since_fired[distributed.all_sum(loss.fired()) > 0] = 0
        return self._figures(loss, y, lr, sparsity) if log else {}

    def _figures(self, loss: Loss, y: Tensor, lr: float, sparsity: float) -> dict[str, float]:
        parts = [loss.mse, loss.total, loss.sparsity, loss.auxk]
        local = torch.tensor([*(float(t.detach()) for t in parts), loss.l0()], dtype=torch.float64)
        mse, total, term, aux, l0 = distributed.all_mean(local).tolist()
        sparse = SPARSITY_LOSSES.get(self.cfg.architecture)
        own = {f"losses/{sparse}": sparsity * term, "details/l1_coefficient": sparsity} if sparse else {}
        revival = "pre_act_loss" if sparse == "l0_loss" else "auxiliary_reconstruction_loss"
        return {
            "losses/overall_loss": total,
            "losses/mse_loss": mse,
            f"losses/{revival}": aux,
            **own,
            "metrics/explained_variance": 1 - mse / max(float(variance(y)), 1e-30),
            "metrics/l0": l0,
            "sparsity/dead_features": int(self.dead.sum()),
            "sparsity/mean_passes_since_fired": float(self.since_fired.double().mean()) / self.config.batch,
            "details/current_learning_rate": lr,
            "details/n_training_samples": self.vectors_seen,
        }

    def state(self) -> tuple[dict[str, Tensor], Plain]:
        """Everything that `restore` needs."""
        tensors = {f"weights.{k}": t for k, t in self.sae.state_dict().items()} | {"since_fired": self.since_fired}
        for name, p in self.sae.named_parameters():
            tensors |= {f"adam.{name}.{k}": t for k, t in self.optimizer.state[p].items()}
        if self.white is not None:
            tensors |= {"white": self.white[0], "white_inverse": self.white[1]}
        return tensors, {"scale_in": self.scale_in, "scale_out": self.scale_out, "vectors_seen": self.vectors_seen}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping) -> None:
        """Inverse of `state`.

        Raises:
            ArtefactError: A tensor is missing.
        """
        try:
            self.sae.load_state_dict({k: tensors[f"weights.{k}"] for k in self.sae.state_dict()})
            self.since_fired.copy_(tensors["since_fired"])
            if self.config.normalize == "whiten":
                self.white = tensors["white"].to(self.sae.W_dec), tensors["white_inverse"].to(self.sae.W_dec)
            for name, p in self.sae.named_parameters():
                cut = f"adam.{name}."
                held = {k.removeprefix(cut): t for k, t in tensors.items() if k.startswith(cut)}
                if held:
                    moments = {k: torch.empty_like(p).copy_(held[k]) for k in ("exp_avg", "exp_avg_sq")}
                    self.optimizer.state[p] = {"step": held["step"], **moments}
        except KeyError as e:
            raise ArtefactError(f"the checkpoint lacks the tensor {e}") from None
        self.scale_in, self.scale_out, self.vectors_seen = (
            values["scale_in"],
            values["scale_out"],
            values["vectors_seen"],
        )

    @torch.no_grad()
    def trained(self, sample: Batch) -> SAE:
        """Ends the training: folds the scale in and sets thresholds so that unseen vectors have the L0 aimed at.

        Args:
            sample: Vectors that were not trained on.
        """
        for p in self.sae.parameters():
            detach_row_grad(p)
            p.grad = None
        self.optimizer.state.clear()  # the moments are twice the weights, and no step follows
        self.sae.fold_scale(self.scale_in, self.scale_out)
        if self.white is not None:
            self.sae.fold_matrix(*self.white)
        if self.cfg.architecture == "jumprelu":
            self.sae.threshold.clamp_(min=0)
        if self.cfg.architecture in CALIBRATED or (self.cfg.architecture == "jumprelu" and self.cfg.target_l0):
            self.sae.calibrate_threshold([self.hooks.vectors(sample, self.sae.b_dec)[0]])
        return self.sae
