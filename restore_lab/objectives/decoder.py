"""The losses of Diff-Restorer's second stage (Eq. 8): L_dec = L_gen + 0.1 L_per + 0.001 L_adv.

L_gen is the mean squared error, L_per a perceptual loss on VGG-19 features before the ReLUs, and L_adv the hinge loss
of a PatchGAN discriminator. The paper specifies neither the VGG-19 layers nor the adversarial loss: layers and weights
are Real-ESRGAN's (conv1_2 to conv5_4; 0.1, 0.1, 1, 1, 1; L1 distance), the discriminator is pix2pix's with three
layers, and with group norm instead of batch norm. Images (B, 3, H, W), near [0, 1].
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from restore_lab.adaptors.fusion.zero_sft import group_norm

log = logging.getLogger(__name__)
LAYERS = {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}  # conv1_2, conv2_2, conv3_4, conv4_4, conv5_4 of torchvision's VGG
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SLOPE = 0.2


class Perceptual(nn.Module):
    """The perceptual loss on features of a frozen VGG-19.

    Args:
        features: the convolutional layers of torchvision's VGG-19.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features[: max(LAYERS) + 1].requires_grad_(False).eval()
        self.register_buffer("mean_C", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std_C", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """The weighted sum of the layers' L1 distances, a scalar."""
        x, target = ((image - self.mean_C) / self.std_C for image in (image_BCHW.float(), target_BCHW.float()))
        total = x.new_zeros(())
        for index, layer in enumerate(self.features):
            # torchvision's ReLUs are in place and would overwrite the compared features.
            x, target = (F.relu(h) if isinstance(layer, nn.ReLU) else layer(h) for h in (x, target))
            if index in LAYERS:
                total = total + LAYERS[index] * F.l1_loss(x, target)
        return total  # Diff-Restorer, Eq. 8: L_per


def vgg19(weights: str | None) -> Perceptual | None:
    """The perceptual loss; None, with a warning, without weights.

    Args:
        weights: "torchvision" for its ImageNet weights (downloaded once, 548 MB), the path of such a file, or null.

    Raises:
        ValueError: for a file that does not exist or is no VGG-19.
    """
    from torchvision.models import VGG19_Weights
    from torchvision.models import vgg19 as architecture

    left_out = "the perceptual loss is left out, the other two go on"
    if torch.get_default_device().type == "meta":  # a dry run: only check that the file exists
        if weights not in (None, "torchvision") and not Path(weights).is_file():
            raise ValueError(f"vgg19={weights}: no such file; give another, or null")
        return None
    if weights is None:
        log.warning("no VGG-19 weights (vgg19=null): %s", left_out)
        return None
    with torch.device("meta"):  # no memory for the classifier, 124 M of the 144 M parameters, nor for random weights
        features = architecture(init_weights=False).features
    assert isinstance(features, nn.Sequential)
    features.to_empty(device=torch.get_default_device())
    try:
        if weights == "torchvision":
            state: Any = VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        else:
            state = _read(Path(weights))
        layers = {name.removeprefix("features."): value for name, value in state.items() if "features." in name}
        features.load_state_dict(layers)
    except OSError as error:
        if weights != "torchvision":
            raise ValueError(f"vgg19={weights}: cannot be read ({error}); give another file, or null") from error
        log.warning("VGG-19's weights are not there (%s): %s; give vgg19=FILE", error, left_out)
        return None
    except Exception as error:  # a foreign or corrupt file: torch and safetensors raise many types of errors
        first = " ".join(str(error).split())[:120]
        raise ValueError(f"vgg19={weights}: not torchvision's VGG-19 ({first}); give another file, or null") from error
    return Perceptual(features)


def _read(file: Path) -> dict[str, Tensor]:
    """A state dict from safetensors, or from torch's format with `weights_only`."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


class PatchDiscriminator(nn.Module):
    """pix2pix's PatchGAN discriminator (Isola et al. 2017); with three layers, one logit per 70x70 patch.

    Args:
        width: channels of the first layer; doubled per layer, up to eight times.
        layers: number of convolutions of stride 2.
    """

    def __init__(self, *, width: int, layers: int) -> None:
        super().__init__()
        steps: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        channels = width
        for index in range(1, layers + 1):
            wider, stride = width * min(2**index, 8), 2 if index < layers else 1
            steps += [nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=False), group_norm(wider)]
            steps.append(nn.LeakyReLU(_SLOPE))
            channels = wider
        self.body = nn.Sequential(*steps, nn.Conv2d(channels, 1, 4, padding=1))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Logits (B, 1, h, w), above 0 for patches classified as real."""
        return self.body(2 * image_BCHW - 1)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The hinge loss of logits: half of mean max(0, 1 - real) + mean max(0, 1 + fake)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(discriminator: nn.Module, fake_BCHW: Tensor) -> Tensor:
    """The decoder's adversarial loss, -mean D(fake), with gradients only to the images.

    Decoder and discriminator are trained in the same step, so the discriminator must not get this loss's gradients.
    """
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    return -functional_call(discriminator, frozen, (fake_BCHW,)).mean()  # Diff-Restorer, Eq. 8: L_adv


def discriminator_loss(discriminator: nn.Module, fake_BCHW: Tensor, real_BCHW: Tensor) -> Tensor:
    """The discriminator's hinge loss, with gradients only to the discriminator."""
    return hinge(discriminator(real_BCHW), discriminator(fake_BCHW.detach()))
