"""tiny_dino: a small DINOv2 distilled to predict, from a degraded image, a frozen teacher's features of the clean one.

InstantIR uses DINOv2's tokens of the LQ because they are robust to degradation (InstantIR, section 3.2, Fig. 3a). A
large DINOv2 is robust by itself; at this size we train for it. A linear head A maps the class token to the teacher's
projected image embedding, another, B, maps the patch tokens to the teacher's normalised patch tokens:
  1 - cos(A(class(LQ)), embedding(HQ)) + patches * smooth_L1(B(patches(LQ)), normalised(patches(HQ)))
The heads are not exported. Selected by `experiment=priors/tiny_dino`.
Shapes: images (B, 3, H, W) in [0, 1]; student's tokens (B, 1 + patches, D), the class token first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restore_lab.methods.trainable import Trainable
from restore_lab.prompts.visual import ClipVision, preprocess

if TYPE_CHECKING:
    from pathlib import Path

    from restore_lab.types import Batch

# DINOv2's, which are ImageNet's; the exported processor has them, and DinoVision normalises with them.
DINO_MEAN = (0.485, 0.456, 0.406)
DINO_STD = (0.229, 0.224, 0.225)


@torch.no_grad()
def teacher_features(teacher: ClipVision, hq_BCHW: Tensor, *, layer: int) -> tuple[Tensor, Tensor]:
    """The teacher's features of clean images: projected embeddings (B, E) and normalised patch tokens (B, L, D).

    Args:
        teacher: a frozen CLIP image tower.
        hq_BCHW: images in [0, 1].
        layer: index of the hidden states with the patch tokens; -1 is after the last block.
    """
    pixels = preprocess(hq_BCHW, short=teacher.size, crop=teacher.size, mean=teacher.mean, std=teacher.std)
    out = teacher.tower(pixel_values=pixels, output_hidden_states=True)
    patches_BLD = out.hidden_states[layer][:, 1:].float()
    return teacher.projection(out.pooler_output).float(), F.layer_norm(patches_BLD, patches_BLD.shape[-1:])


class DinoPretraining(Trainable):
    """Trains a Dinov2Model from scratch.

    Args:
        teacher: a frozen CLIP image tower, applied to the clean images.
        teacher_layer: index of the teacher's hidden states whose patch tokens are the target. The default is -2,
            because CLIP's loss trains only the class token of the last block, not its patch tokens.
        image_size: side of the input in pixels.
        patch_size: side of a patch in pixels.
        width, layers, heads: of the student.
        patches: weight of the patch tokens' loss.

    Raises:
        ValueError: if student and teacher divide an image into different numbers of patches.
    """

    def __init__(
        self,
        *,
        teacher: ClipVision,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        teacher_layer: int = -2,
        patches: float = 1.0,
    ) -> None:
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model

        config = teacher.tower.config
        grids = image_size // patch_size, config.image_size // config.patch_size
        if grids[0] != grids[1]:
            raise ValueError(
                f"module.image_size={image_size} and patch_size={patch_size} give {grids[0]} patches a side, the "
                f"teacher has {grids[1]}; patch tokens are matched one to one"
            )
        self.teacher, self.teacher_layer, self.patches = teacher, teacher_layer, patches
        self.image_size = image_size
        self.student = Dinov2Model(
            Dinov2Config(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                image_size=image_size,
                patch_size=patch_size,
                use_mask_token=False,
            )
        )
        self.class_head = nn.Linear(width, teacher.width)
        self.patch_head = nn.Linear(width, config.hidden_size)

    def tokens(self, lq_BCHW: Tensor) -> Tensor:
        """The student's tokens, with the preprocessing of `DinoVision`."""
        pixels = preprocess(lq_BCHW, short=self.image_size, crop=self.image_size, mean=DINO_MEAN, std=DINO_STD)
        return self.student(pixel_values=pixels).last_hidden_state

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """The distillation loss of one batch, and its terms; the LQ may be as clean as the HQ.

        Raises:
            ValueError: if the batch has no HQ or no LQ.
        """
        if batch.hq_BCHW is None:
            raise ValueError("tiny_dino's teacher looks at clean images; this data source gave none")
        if batch.lq_BCHW is None:
            raise ValueError("tiny_dino's student looks at an LQ; choose a degradation (degradation=none: all clean)")
        embedding_BE, patches_BLD = teacher_features(self.teacher, batch.hq_BCHW, layer=self.teacher_layer)
        tokens_BLD = self.tokens(batch.lq_BCHW)
        cosine = F.cosine_similarity(self.class_head(tokens_BLD[:, 0]).float(), embedding_BE, dim=1).mean()
        patch = F.smooth_l1_loss(self.patch_head(tokens_BLD[:, 1:]).float(), patches_BLD)
        loss = 1 - cosine + self.patches * patch
        return {"loss": loss, "cosine": cosine.detach(), "patches": patch.detach()}

    def export(self, folder: Path) -> None:
        """Write a Dinov2Model folder in half precision, without the heads, with the image processor's settings."""
        from transformers import BitImageProcessor

        size = self.image_size
        frame: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        self.student.half().save_pretrained(folder)
        BitImageProcessor(
            **frame,
            resample=3,  # bicubic
            image_mean=list(DINO_MEAN),
            image_std=list(DINO_STD),
        ).save_pretrained(folder)
