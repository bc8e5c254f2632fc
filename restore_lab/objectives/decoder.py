"""The losses of Diff-Restorer's second stage (Eq. 8): L_dec = L_gen + 0.1 L_per + 0.001 L_adv.

L_gen is the mean squared error; L_per compares VGG-19's features before the ReLUs; L_adv is the hinge loss of a
discriminator of patches. The paper names VGG-19 and an adversarial loss, no layers and no form: layers and weights are
Real-ESRGAN's (conv1_2 to conv5_4; 0.1, 0.1, 1, 1, 1; absolute differences), the discriminator is pix2pix's of three
layers, with group norm in the place of batch norm. Images (B, 3, H, W) in [0, 1] or near it.
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
SLOPE = 0.2


class Perceptual(nn.Module):
    """VGG-19's distance between images, frozen.

    Args:
        features: the convolutional part of torchvision's VGG-19.
    """

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features[: max(LAYERS) + 1].requires_grad_(False).eval()
        self.register_buffer("mean_C", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std_C", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, made_BCHW: Tensor, wanted_BCHW: Tensor) -> Tensor:
        """The weighted sum of the layers' mean absolute differences, a scalar."""
        made, wanted = ((x - self.mean_C) / self.std_C for x in (made_BCHW.float(), wanted_BCHW.float()))
        total = made.new_zeros(())
        for index, layer in enumerate(self.features):
            # torchvision's ReLUs work in place and would spoil the features that are compared.
            made, wanted = (F.relu(x) if isinstance(layer, nn.ReLU) else layer(x) for x in (made, wanted))
            if index in LAYERS:
                total = total + LAYERS[index] * F.l1_loss(made, wanted)
        return total


def vgg19(weights: str | None) -> Perceptual | None:
    """The perceptual loss, or None, said in one line, where its weights are not there.

    Args:
        weights: "torchvision" for its ImageNet weights (downloaded once, 548 MB), the path of such a file, or null.

    Raises:
        ValueError: for a file that is not there or no VGG-19.
    """
    from torchvision.models import VGG19_Weights
    from torchvision.models import vgg19 as architecture

    left_out = "the perceptual loss is left out, the other two go on"
    if torch.get_default_device().type == "meta":  # nothing runs: what matters is whether the file is there
        if weights not in (None, "torchvision") and not Path(weights).is_file():
            raise ValueError(f"vgg19={weights}: no such file; give another, or null")
        return None
    if weights is None:
        log.warning("no VGG-19 weights (vgg19=null): %s", left_out)
        return None
    with torch.device("meta"):  # without its classifier, 124 M of the 144 M parameters, and without random weights
        features = architecture(init_weights=False).features
    features.to_empty(device=torch.get_default_device())
    try:
        if weights == "torchvision":
            state: Any = VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        else:
            state = _read(Path(weights))
        kept = {name.removeprefix("features."): value for name, value in state.items() if "features." in name}
        features.load_state_dict(kept)
    except OSError as error:
        if weights != "torchvision":
            raise ValueError(f"vgg19={weights}: cannot be read ({error}); give another file, or null") from error
        log.warning("VGG-19's weights are not there (%s): %s; give vgg19=FILE", error, left_out)
        return None
    except Exception as error:  # a foreign or damaged file: torch and safetensors raise errors of many kinds
        first = " ".join(str(error).split())[:120]
        raise ValueError(f"vgg19={weights}: not torchvision's VGG-19 ({first}); give another file, or null") from error
    return Perceptual(features)


def _read(file: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or from torch's own format, whose pickle may hold tensors alone."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


class PatchDiscriminator(nn.Module):
    """pix2pix's discriminator (Isola et al. 2017): one logit for each patch of 70 pixels, with three layers.

    Args:
        width: channels of the first layer; doubled up to eightfold.
        layers: convolutions of stride 2.
    """

    def __init__(self, *, width: int, layers: int) -> None:
        super().__init__()
        steps: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        channels = width
        for index in range(1, layers + 1):
            wider, stride = width * min(2**index, 8), 2 if index < layers else 1
            steps += [nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=False), group_norm(wider)]
            steps.append(nn.LeakyReLU(SLOPE))
            channels = wider
        self.body = nn.Sequential(*steps, nn.Conv2d(channels, 1, 4, padding=1))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Logits (B, 1, h, w): above 0 for what looks real."""
        return self.body(2 * image_BCHW - 1)


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's loss: the mean of max(0, 1 - real) and max(0, 1 + made), halved."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())


def deceived(discriminator: nn.Module, made_BCHW: Tensor) -> Tensor:
    """The decoder's loss, -mean D(made), whose gradient reaches the images alone: both players share a step."""
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    return -functional_call(discriminator, frozen, (made_BCHW,)).mean()


def judged(discriminator: nn.Module, made_BCHW: Tensor, real_BCHW: Tensor) -> Tensor:
    """The discriminator's hinge loss, whose gradient reaches the discriminator alone."""
    return hinge(discriminator(real_BCHW), discriminator(made_BCHW.detach()))
