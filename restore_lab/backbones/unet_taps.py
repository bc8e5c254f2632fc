"""The taps of a diffusers UNet, derived from its modules: names, kinds, channels and strides, in forward order.

Encoder half: `skip.0` (conv_in), then per down block one `skip.n` for each skip connection and `down.i` for the block's
output; `mid`. Decoder half, per up block: `join.n` before each resnet (decoder features with the skip concatenated),
`upsample.i` before the upsampler, `up.i` after the block. An adaptor built from taps therefore fits SD 1.5, SD 2.1,
SDXL, tiny_sd and trimmed copies.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from restore_lab.types import Tap

DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D")
MID = ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn")

# Options of UNet2DConditionModel that SD and SDXL do not use and the loop does not implement, with their off values.
OFF = {
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim_type": None,
    "time_embedding_act_fn": None,
    "center_input_sample": False,
}


def check_supported(unet: UNet2DConditionModel) -> None:
    """Check that the loop implements the UNet's forward.

    Raises:
        ValueError: for an unsupported option or block.
    """
    for option, off in OFF.items():
        value = unet.config.get(option, off)
        if value != off:
            raise ValueError(f"unet config {option}={value!r} is not supported; only SD and SDXL shapes are")
    kind = unet.config.get("addition_embed_type")
    if kind not in (None, "text_time"):
        raise ValueError(f"unet config addition_embed_type={kind!r}: only text_time (SDXL)")
    if unet.mid_block is None:
        raise ValueError("unet without a middle block is not supported")
    named = [(DOWN, block) for block in unet.down_blocks] + [(UP, block) for block in unet.up_blocks]
    for allowed, block in [*named, (MID, unet.mid_block)]:
        if type(block).__name__ not in allowed:
            raise ValueError(f"unet block {type(block).__name__} is not supported; use one of {', '.join(allowed)}")


def encoder_taps(unet: UNet2DConditionModel) -> tuple[Tap, ...]:
    """The taps from conv_in to the middle block, of the kinds "encoder", "block" and "middle"."""
    stride, width = 1, unet.conv_in.out_channels
    taps = [Tap(name="skip.0", kind="encoder", channels=width, stride=stride)]
    skips = 1
    block: Any
    for i, block in enumerate(unet.down_blocks):
        outputs = [(resnet.out_channels, stride) for resnet in block.resnets]
        for sampler in block.downsamplers or ():
            stride *= 2
            outputs.append((sampler.out_channels, stride))
        for channels, at_stride in outputs:
            taps.append(Tap(name=f"skip.{skips}", kind="encoder", channels=channels, stride=at_stride))
            skips += 1
        width = outputs[-1][0]
        taps.append(Tap(name=f"down.{i}", kind="block", channels=width, stride=stride))
    mid: Any = unet.mid_block
    return (*taps, Tap(name="mid", kind="middle", channels=mid.resnets[-1].out_channels, stride=stride))


def decoder_taps(unet: UNet2DConditionModel) -> tuple[Tap, ...]:
    """The taps from the first join to the last up block, of the kinds "join", "upsample" and "block"."""
    before = encoder_taps(unet)
    skips = [tap.channels for tap in before if tap.kind == "encoder"]
    stride, width, joins = before[-1].stride, before[-1].channels, 0
    taps: list[Tap] = []
    block: Any
    for i, block in enumerate(unet.up_blocks):
        for resnet in block.resnets:
            skip = skips.pop()
            taps.append(Tap(name=f"join.{joins}", kind="join", channels=width + skip, stride=stride, skip=skip))
            width, joins = resnet.out_channels, joins + 1
        for _ in block.upsamplers or ():
            taps.append(Tap(name=f"upsample.{i}", kind="upsample", channels=width, stride=stride))
            stride //= 2
        taps.append(Tap(name=f"up.{i}", kind="block", channels=width, stride=stride))
    return tuple(taps)
