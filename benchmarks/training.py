"""Training steps of a ControlNet, one a call: ours inside Lightning's own loop, diffusers' as its examples describe it.

Ours is all that `restore-lab train` does in a step but read and degrade images and average weights: Lightning's
bookkeeping, words, latents, loss, backward pass, clipping, AdamW, schedule. Theirs is the step of
examples/controlnet/train_controlnet.py and train_controlnet_sd3.py, without accelerate around it: latents of the HQ
unless they are cached, noise, a time, the ControlNet, the prior with its residuals, the squared error, backward pass,
clipping, AdamW, schedule. Text embeddings are there on both sides. float32, or bf16 by autocast.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from benchmarks.alternating import Seconds, clock
from benchmarks.theirs import Diffusers
from restore_lab.config.build import build
from restore_lab.config.trainer import trainer_of
from restore_lab.methods.module import RestorationModule
from restore_lab.training.module import Optimisation, TrainingModule
from restore_lab.training.trainer import trainer_for
from restore_lab.types import Batch

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """What Lightning's word means for a forward pass."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def our_loss(module: RestorationModule, batch: Batch, *, precision: str) -> Tensor:
    """The loss of a batch as our step takes it, outside Lightning's loop; `module` was not in one yet."""
    with autocast(precision, module.device):
        return module.loss(batch, step=0)["loss"]


class OurTraining(L.Callback):
    """Lightning's fit, one optimiser step a call: it runs in a thread that waits between steps.

    Args:
        module: ours.
        cfg: the config of `restore-lab train` behind it.
        data: these batches, again and again.
        precision: Lightning's word.
    """

    def __init__(self, module: RestorationModule, cfg: Any, data: Sequence[Batch], *, precision: str) -> None:
        self.device, self.error = module.device, None
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        folder = tempfile.TemporaryDirectory(prefix="restore-lab-bench-")
        self._thread = threading.Thread(target=self._fit, args=(module, cfg, data, precision, folder), daemon=True)
        self._thread.start()

    def __call__(self) -> Seconds:
        start = clock(self.device)
        self._go.release()
        self._done.acquire()
        if self.error is not None:
            raise self.error
        return {"training step": clock(self.device) - start}

    def close(self) -> None:
        """End the fit."""
        self.ended = True
        self._go.release()
        self._thread.join()

    ended, step = False, 0

    def on_train_batch_start(self, trainer: L.Trainer, *given: Any) -> None:
        """The first batch waits for the first call."""
        if trainer.global_step == 0:
            self._go.acquire()

    def on_train_batch_end(self, trainer: L.Trainer, *given: Any) -> None:
        """A step is over; what Lightning does between two counts with the next."""
        self.step = trainer.global_step
        self._done.release()
        self._go.acquire()
        trainer.should_stop = self.ended

    def _fit(
        self,
        module: RestorationModule,
        cfg: Any,
        data: Sequence[Batch],
        precision: str,
        folder: tempfile.TemporaryDirectory,
    ) -> None:
        own, common = (OmegaConf.to_container(node, resolve=True) for node in (cfg.stages.adaptor.trainer, cfg.trainer))
        settings: dict[str, Any] = {
            **trainer_of("adaptor", own, common, words=()),  # type: ignore[arg-type]
            "accelerator": "gpu" if self.device.type == "cuda" else self.device.type,
            "devices": 1,
            "precision": precision,
            "deterministic": False,  # a switch of the whole process, so that theirs would be slowed with ours
        }
        try:
            trainer = trainer_for(settings, folder=Path(folder.name), average=False, callbacks=[self])
            training = TrainingModule(module, optimisation=build(cfg.optimisation))
            trainer.fit(training, train_dataloaders=Endless(data))
        except BaseException as error:
            self.error = error
        finally:
            folder.cleanup()
            self._done.release()


class Endless:
    """Batches for a trainer, again and again."""

    def __init__(self, data: Sequence[Batch]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        return itertools.cycle(self.data)


class TheirTraining:
    """diffusers' step, one a call.

    Args:
        side: diffusers' modules, the ControlNet in float32.
        data: these batches, again and again.
        optimisation: ours; its AdamW.
        clip: the gradient's norm.
        precision: Lightning's word.
    """

    def __init__(
        self,
        side: Diffusers,
        data: Sequence[Batch],
        *,
        optimisation: Optimisation,
        clip: float,
        precision: str,
    ) -> None:
        self.side, self.clip, self.precision = side, clip, precision
        o, self.parameters = optimisation, [p for p in side.controlnet.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=o.lr, betas=o.betas, weight_decay=o.weight_decay, eps=o.eps
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: 1.0)
        self.device = self.parameters[0].device
        self.said = {batch.key: side.embed(batch.caption, batch.hq_BCHW.shape[-2:]) for batch in data}  # type: ignore[union-attr]
        self.latents: dict[Any, Tensor] = {}
        self.data = itertools.cycle(data)
        side.controlnet.train()

    def __call__(self) -> Seconds:
        start = clock(self.device)
        self.loss(next(self.data)).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        return {"training step": clock(self.device) - start}

    def remember(self, data: Sequence[Batch]) -> None:
        """Make the latents of these batches' HQs once and for all; of none, encode in every step."""
        self.latents = {batch.key: self.latent(batch.hq_BCHW) for batch in data}

    @torch.no_grad()
    def latent(self, image_BCHW: Any) -> Tensor:
        """Normalised latents of images in [0, 1]."""
        vae = self.side.vae
        drawn = vae.encode((2 * image_BCHW - 1).to(vae.dtype)).latent_dist.sample()
        return (drawn - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def loss(self, batch: Batch, *, noise_BCHW: Tensor | None = None, t_B: Tensor | None = None) -> Tensor:
        """The loss of a batch, at a noise and times of its own unless they are given."""
        side, said = self.side, self.said[batch.key]
        z0_BCHW = self.latents[batch.key] if self.latents else self.latent(batch.hq_BCHW)
        noise_BCHW = torch.randn_like(z0_BCHW) if noise_BCHW is None else noise_BCHW.to(z0_BCHW)
        if side.family == "mmdit":
            return self._flow(batch, said, z0_BCHW, noise_BCHW, t_B)
        scheduler = side.scheduler
        if t_B is None:
            t_B = torch.randint(scheduler.config.num_train_timesteps, (len(batch),), device=self.device)
        z_BCHW = scheduler.add_noise(z0_BCHW, noise_BCHW, t_B)
        target_BCHW = noise_BCHW
        if scheduler.config.prediction_type == "v_prediction":
            target_BCHW = scheduler.get_velocity(z0_BCHW, noise_BCHW, t_B)
        dtype = side.denoiser.dtype
        told: dict[str, Any] = {"encoder_hidden_states": said.tokens_BLD.to(dtype), "return_dict": False}
        if said.pooled_BD is not None:
            told["added_cond_kwargs"] = {"text_embeds": said.pooled_BD.to(dtype), "time_ids": said.size_BD}
        with autocast(self.precision, self.device):
            downs, mid = side.controlnet(z_BCHW, t_B, controlnet_cond=batch.lq_BCHW, **told)
            out_BCHW = side.denoiser(
                z_BCHW.to(dtype),
                t_B,
                down_block_additional_residuals=[down.to(dtype) for down in downs],
                mid_block_additional_residual=mid.to(dtype),
                **told,
            )[0]
        return F.mse_loss(out_BCHW.float(), target_BCHW.float())

    def _flow(self, batch: Batch, said: Any, z0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor | None) -> Tensor:
        """Flow matching at logit-normal times."""
        side, scheduler = self.side, self.side.scheduler
        if t_B is None:
            count = scheduler.config.num_train_timesteps
            index_B = (torch.sigmoid(torch.randn(len(batch))) * count).long().clamp(max=count - 1)
            t_B = scheduler.timesteps[index_B]
        t_B = t_B.to(self.device)
        sigma = (t_B / scheduler.config.num_train_timesteps).reshape(-1, 1, 1, 1).to(z0_BCHW)
        z_BCHW = (1.0 - sigma) * z0_BCHW + sigma * noise_BCHW
        dtype = side.denoiser.dtype
        told = {
            "timestep": t_B,
            "encoder_hidden_states": said.tokens_BLD.to(dtype),
            "pooled_projections": said.pooled_BD.to(dtype),
            "return_dict": False,
        }
        with autocast(self.precision, self.device):
            controls = side.controlnet(z_BCHW, controlnet_cond=self.latent(batch.lq_BCHW), **told)[0]
            out_BCHW = side.denoiser(
                z_BCHW.to(dtype), block_controlnet_hidden_states=[control.to(dtype) for control in controls], **told
            )[0]
        return F.mse_loss(out_BCHW.float(), (noise_BCHW - z0_BCHW).float())
