"""StableSR's feature wrapping: its autoencoder's layout imports whole and decodes the original's image."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import nn

from restore_lab.config.build import build
from restore_lab.decoders.cfw import Wrapping
from restore_lab.types import Hint
from tests.helpers.configs import composed
from tests.helpers.import_priors import imported, prior_folder, stored
from tests.helpers.ldm_reference import Fuse, KLDecoder, KLEncoder, randomised

WIDTHS = (32, 32, 64, 64)


@pytest.fixture(scope="module")
def autoencoder():
    """StableSR's, with wrappings at levels 1 and 2, random."""
    whole = nn.Module()
    whole.encoder = KLEncoder(widths=WIDTHS, layers=1)
    whole.decoder = KLDecoder(widths=WIDTHS, layers=1, fuse=True)
    whole.quant_conv, whole.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
    return randomised(whole)


@pytest.fixture(scope="module")
def prior(autoencoder, tmp_path_factory):
    """A toy folder whose codec is StableSR's without the wrappings, converted by diffusers' own converter."""
    folder = prior_folder(tmp_path_factory.mktemp("prior"), "sd21")
    settings = {"block_out_channels": WIDTHS, "norm_num_groups": 32, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**settings, **blocks)
    theirs = {f"first_stage_model.{k}": v for k, v in autoencoder.state_dict().items() if "fusion" not in k}
    vae.load_state_dict(convert_ldm_vae_checkpoint(theirs, dict(vae.config)))
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.mark.parametrize("w", [0.5, 1.0])
@torch.no_grad()
def test_the_wrapped_decoder_gives_stablesrs_image(autoencoder, prior, tmp_path, w) -> None:
    state = {**autoencoder.state_dict(), "loss.discriminator.main.0.weight": torch.ones(1)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "cfw.ckpt")
    words = ["scale=tiny", f"backbone.path={prior}", f"runs_dir={tmp_path}", "hint_widths=[4,4,8,8]"]
    done = imported([tmp_path / "cfw.ckpt"], *words)
    (told,) = done.facts["sources"]
    wrappings = sum("fusion_layer" in key for key in state)
    assert (told["mapped"], told["base"], told["keys"]) == (wrappings, len(state) - wrappings, len(state))

    own = [*words, "decoder=cfw", f"decoder.weights={done.folder}", f"decoder.w={w}", "input=none"]
    module = build(composed("restore", *own).module).eval()
    assert not module.decoder.in_checkpoint and module.decoder_state() == {}
    draw = torch.Generator().manual_seed(2)
    z, image = torch.randn(1, 4, 4, 4, generator=draw), torch.rand(1, 3, 32, 32, generator=draw)
    features: list[torch.Tensor] = []
    autoencoder.encoder(2 * image - 1, levels=features)
    codec = module.backbone.codec
    latent = z / codec.scale[0] + codec.shift[0]
    theirs = (autoencoder.decoder(autoencoder.post_quant_conv(latent), features, w=w) + 1) / 2
    ours = module.decoder(z, Hint(lq_BCHW=image), codec)
    plain = codec.decode(z, clamp=False)
    assert (theirs - plain).abs().mean() > 0.01 * plain.abs().mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_wrapping_that_lacks_a_tensor_is_refused_by_name(autoencoder, prior, tmp_path) -> None:
    key = "decoder.fusion_layer_2.encode_enc_2.1.rdb3.conv5.bias"
    state = autoencoder.state_dict()
    assert key in state
    file = stored({k: v for k, v in state.items() if k != key}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=f"1 missing: {key}"):
        imported([file], "scale=tiny", f"backbone.path={prior}", "hint_widths=[4,4,8,8]")


def test_the_releases_wrapping_has_its_size() -> None:
    """44.4 M for the two wrappings of SD's codec."""
    with torch.device("meta"):
        count = sum(p.numel() for width in (256, 512) for p in Fuse(width).parameters())
        ours = sum(p.numel() for width in (256, 512) for p in Wrapping(width, dense=2).parameters())
    assert ours == count and round(count / 1e6, 1) == 44.4
