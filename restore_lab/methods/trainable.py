"""What a training stage trains: the contract between a method, a part of one, or a prior, and the one LightningModule.

All randomness of a loss comes from the samples' own seeds (`Batch.seed`), so a resumed run needs no random states to
repeat the same losses, and processes that share a batch draw what one process would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from restore_lab.types import Batch


class Trainable(nn.Module):
    """Base of methods and priors: a loss, what is trained, and what is written when training ends.

    Attributes:
        divides: whether the loss of a batch is the mean of the losses of its parts.
    """

    divides = True

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return next(self.parameters()).device

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """The losses of one batch by name, without gradients but for "loss", which is minimised.

        Args:
            batch: pairs, or images.
            step: optimiser steps done.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Figures of one batch by name, such as "psnr_restored", and images, "restored": (B, 3, H, W) in [0, 1].

        A class without one is not validated.
        """
        raise NotImplementedError(f"{type(self).__name__} has nothing to validate")

    @classmethod
    def validates(cls) -> bool:
        """Whether the class has a `validate` of its own."""
        return cls.validate is not Trainable.validate

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups; each is clipped by its own norm."""
        return [{"params": list(self.trainable().values())}]

    def training_state(self) -> dict[str, Tensor]:
        """What a resumed training needs besides the trained parameters, by name."""
        return {}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `training_state` gave."""

    def load_weights(self, file: Path, *, partial: bool = False) -> None:
        """Start from the weights in a file that `export` wrote.

        Args:
            file: the weights.
            partial: an earlier stage's file may lack whole parts, which stay as they are.
        """
        raise ValueError(f"{type(self).__name__} starts from no weights; set weights=null")

    def take(self, found: Mapping[str, Tensor], *, file: Path, partial: bool = False) -> None:
        """Start from tensors by name; `file`, in which they are or will be, is for errors."""
        raise ValueError(f"{type(self).__name__} starts from no weights; set weights=null")

    def exported(self) -> dict[str, Tensor] | None:
        """The tensors that `export` writes, by name; None where its result is of another form."""
        return None

    def export(self, folder: Path) -> None:
        """Write the finished artefact (weights and whatever is needed to load them) into an existing folder."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its result is written")


def with_sum(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms of a loss by name, without gradients, and their sum, "loss"."""
    terms = {name: value.detach() for name, value in losses.items()}
    return {**terms, "loss": torch.stack(list(losses.values())).sum()}


def mean_psnr(images: Mapping[str, Tensor], hq_BCHW: Tensor) -> dict[str, Tensor]:
    """The mean PSNR in dB of each of some images in [0, 1] by name, as "psnr_<name>"."""
    mse = {name: (image_BCHW - hq_BCHW).square().mean(dim=(1, 2, 3)) for name, image_BCHW in images.items()}
    return {f"psnr_{name}": (-10 * mse_B.log10()).mean() for name, mse_B in mse.items()}
