"""An AutoencoderKL's encoder and decoder in bands of rows: diffusers' results for images of any size.

There is one convolution between two group norms, so a band needs one row of each adjacent band. The norms use the
statistics of the whole feature map (bands.py), and the middle block's attention has the keys and values of all
positions, with queries band by band. The results equal the unbanded codec's up to float32 rounding.
Shapes: images (B, 3, H, W), latents (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from restore_lab.backbones.codec.bands import Canvas, map_bands

Refine = Callable[[int, int, Canvas], Canvas]


def encode_in_bands(encoder: Any, image_BCHW: Tensor, *, rows: int) -> Tensor:
    """The encoder's output, (B, 2C, h, w), for images in [0, 1].

    Args:
        encoder: diffusers' `Encoder`.
        image_BCHW: images, processed one by one.
        rows: rows per band.
    """
    outputs, like = [], _like(encoder, image_BCHW)
    for image_CHW in image_BCHW:
        h = _last(features_in_bands(encoder, image_CHW[None], rows=rows))
        outputs.append(_out(encoder, _middle(encoder.mid_block, h, rows, like), rows, like))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def features_in_bands(encoder: Any, image_1CHW: Tensor, *, rows: int) -> Iterator[Canvas]:
    """The encoder's features of an image in [0, 1] at each level, before downsampling; the finest level first."""
    conv, like = encoder.conv_in, _like(encoder, image_1CHW)
    h = map_bands(
        lambda x: conv(2 * x - 1),
        [Canvas.of(image_1CHW)],
        like=like,
        channels=conv.out_channels,
        rows=rows,
        halo=1,
    )
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            h = _resnet(resnet, h, rows, like)
        yield h
        for downsampler in block.downsamplers or ():
            channels = downsampler.conv.out_channels
            h = map_bands(downsampler, [h], like=like, channels=channels, rows=rows, halo=2, down=2)


def decode_in_bands(decoder: Any, z_BCHW: Tensor, *, rows: int, refine: Refine | None = None) -> Tensor:
    """The decoder's output, (B, 3, H, W).

    Args:
        decoder: diffusers' `Decoder`.
        z_BCHW: the decoder's inputs, after post_quant_conv, processed one by one.
        rows: rows per band.
        refine: a function of image index, level index (0 for the coarsest) and the level's features before upsampling,
            which returns the features to use.
    """
    outputs = [_decode(decoder, z[None], rows, number, refine) for number, z in enumerate(z_BCHW)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _decode(decoder: Any, z_1CHW: Tensor, rows: int, number: int, refine: Refine | None) -> Tensor:
    conv, like = decoder.conv_in, _like(decoder, z_1CHW)
    h = map_bands(conv, [Canvas.of(z_1CHW)], like=like, channels=conv.out_channels, rows=rows, halo=1)
    h = _middle(decoder.mid_block, h, rows, like)
    for index, level in enumerate(decoder.up_blocks):
        for resnet in level.resnets:
            h = _resnet(resnet, h, rows, like)
        if refine is not None:
            h = refine(number, index, h)
        for upsampler in level.upsamplers or ():
            h = map_bands(upsampler, [h], like=like, channels=upsampler.conv.out_channels, rows=rows, halo=1, up=2)
    return _out(decoder, h, rows, like)


def _like(coder: Any, x_BCHW: Tensor) -> Tensor:
    """An empty tensor with the weights' dtype on the input's device; offloaded weights are on another device."""
    return x_BCHW.new_empty(0, dtype=coder.conv_in.weight.dtype)


def _out(coder: Any, h: Canvas, rows: int, like: Tensor) -> Tensor:
    """The last norm and convolution, into one tensor."""
    norm, conv = h.bind_norm(coder.conv_norm_out), coder.conv_out
    out_1CHW = like.new_empty(1, conv.out_channels, h.height, h.width)
    map_bands(
        lambda band: conv(coder.conv_act(norm(band))),
        [h],
        like=like,
        channels=conv.out_channels,
        rows=rows,
        halo=1,
        into=Canvas.of(out_1CHW),
    )
    return out_1CHW


def _resnet(block: Any, x: Canvas, rows: int, like: Tensor) -> Canvas:
    """diffusers' ResnetBlock2D without time: x + conv2(silu(norm2(conv1(silu(norm1(x))))))."""
    first = x.bind_norm(block.norm1)
    h = map_bands(
        lambda band: block.conv1(block.nonlinearity(first(band))),
        [x],
        like=like,
        channels=block.conv1.out_channels,
        rows=rows,
        halo=1,
    )
    second, shortcut = h.bind_norm(block.norm2), block.conv_shortcut

    def rest(h_band: Tensor, x_band: Tensor) -> Tensor:
        update = block.conv2(block.nonlinearity(second(h_band)))
        return ((x_band if shortcut is None else shortcut(x_band)) + update) / block.output_scale_factor

    # Without a shortcut convolution the sum overwrites x, whose rows are read before they are written.
    into = x if shortcut is None else None
    return map_bands(rest, [h, x], like=like, channels=block.conv2.out_channels, rows=rows, halo=1, into=into)


def _middle(block: Any, h: Canvas, rows: int, like: Tensor) -> Canvas:
    """diffusers' UNetMidBlock2D without time."""
    h = _resnet(block.resnets[0], h, rows, like)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            h = _attend(attention, h, rows, like)
        h = _resnet(resnet, h, rows, like)
    return h


def _attend(attention: Any, h: Canvas, rows: int, like: Tensor) -> Canvas:
    """diffusers' Attention over the whole map, with the queries of one band at a time."""
    norm = h.bind_norm(attention.group_norm)
    keys, values = [], []
    for top in range(0, h.height, rows):
        tokens = _tokens(norm(h.rows(top, min(top + rows, h.height)).to(like)))
        keys.append(_heads(attention.to_k(tokens), attention.heads))
        values.append(_heads(attention.to_v(tokens), attention.heads))
    key, value = torch.cat(keys, dim=2), torch.cat(values, dim=2)
    del keys, values

    def band(x_1CHW: Tensor) -> Tensor:
        query = _heads(attention.to_q(_tokens(norm(x_1CHW))), attention.heads)
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        out = attention.to_out[0](out).transpose(1, 2).reshape(x_1CHW.shape)
        return (out + x_1CHW if attention.residual_connection else out) / attention.rescale_output_factor

    return map_bands(band, [h], like=like, channels=h.channels, rows=rows, halo=0, into=h)


def _tokens(band_1CHW: Tensor) -> Tensor:
    return band_1CHW.flatten(2).transpose(1, 2)


def _heads(tokens_1LC: Tensor, heads: int) -> Tensor:
    return tokens_1LC.unflatten(2, (heads, -1)).transpose(1, 2)


def _last(canvases: Iterator[Canvas]) -> Canvas:
    """The last canvas; the others are freed."""
    canvas = next(canvases)
    for canvas in canvases:  # noqa: B007
        pass
    return canvas
