"""The training of the shipped priors: tokenizer, codec normalisation, folders that the libraries read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from restore_lab.backbones.loading.load import load_backbone
from restore_lab.priors.clip import same_caption, sample_instructions, train_tokenizer
from restore_lab.priors.codec import INITIAL_LOGVAR, CodecPretraining, fold_normalisation
from restore_lab.priors.codec_start import dct_basis
from restore_lab.priors.denoiser import shrink_and_enlarge
from restore_lab.storage.paths import place_of
from restore_lab.training.run import fit
from restore_lab.types import REMOVE_ALL
from tests.helpers.configs import composed
from tests.helpers.rounding import close
from tests.helpers.toy_priors import toy_vae

TEXTS = [
    "a red circle and a small blue star on a green background",
    "Deblur with sigma 2.4; Denoise with sigma 0.06",
    "a cat's, asleep: 50% [off] {x} #1 \\ ~",
    "\u00dcn\u00efc\u00f6d\u00e9 \u2713 \u65e5\u672c\u8a9e \u0440\u0443\u0441 \U0001f408 \u0e44\u0e17\u0e22",
    "zero\u200bwidth and \x07 bell",
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    learnt = ["a red circle on a green texture", "the word SKY in blue", *sample_instructions(count=60, seed=0)]
    return train_tokenizer(learnt, vocab_size=600, max_length=77)


def test_the_tokenizer_reads_any_text(tokenizer) -> None:
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert ids[0] == start and ids[-1] == end
        assert start not in ids[1:] and end not in ids[:-1]  # CLIP's unknown token is the end mark
        assert max(ids) < len(tokenizer) <= 600
    for text in TEXTS[:2]:
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


def test_digits_are_single_tokens(tokenizer) -> None:
    assert tokenizer.tokenize("2026") == ["2</w>", "0</w>", "2</w>", "6</w>"]
    assert [t for t in tokenizer.tokenize("sigma 0.06") if t[0].isdigit()] == ["0</w>", "0</w>", "6</w>"]
    digits = [token for token in tokenizer.get_vocab() if any(c.isdigit() and c.isascii() for c in token)]
    assert all(len(token.removesuffix("</w>")) == 1 for token in digits)


def test_learned_words_are_short(tokenizer) -> None:
    """Merges were learned: an instruction takes few tokens, where bytes would take forty."""
    assert len(tokenizer.tokenize("denoise with sigma")) == 3
    assert len(tokenizer.tokenize("xylophone")) > 3


def test_save_and_load_give_the_same_ids(tokenizer, tmp_path) -> None:
    from transformers import CLIPTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.model_max_length == 77
    padded = {"padding": "max_length", "truncation": True}
    for text in [*TEXTS, "word " * 200]:
        assert loaded(text, **padded).input_ids == tokenizer(text, **padded).input_ids
        assert len(loaded(text, **padded).input_ids) == 77


def test_tokenizer_and_instructions_are_deterministic_and_checked() -> None:
    words = sample_instructions(count=40, seed=3)
    assert words == sample_instructions(count=40, seed=3) != sample_instructions(count=40, seed=4)
    assert words.count(REMOVE_ALL) == 2
    twice = [train_tokenizer(words, vocab_size=560, max_length=16).get_vocab() for _ in range(2)]
    assert twice[0] == twice[1]
    with pytest.raises(ValueError, match="vocab_size=500 is too small"):
        train_tokenizer(words, vocab_size=500, max_length=16)


def test_folding_leaves_the_codec_and_normalises_its_latents() -> None:
    vae = toy_vae()
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        mean_C, std_C = before.mean.mean(dim=(0, 2, 3)), before.mean.std(dim=(0, 2, 3), correction=0)
        decoded = [vae.decode(z).sample for z in (before.mean, before.mean + before.std * noise)]
        fold_normalisation(vae, mean_C, std_C)
        after = vae.encode(x).latent_dist
        for z, old in zip((after.mean, after.mean + after.std * noise), decoded, strict=True):
            torch.testing.assert_close(vae.decode(z).sample, old, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.mean.std(dim=(0, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.std, before.std / std_C[:, None, None], atol=0, rtol=1e-3)
    assert not torch.allclose(std_C, torch.ones(4), rtol=0.1)


def codec() -> CodecPretraining:
    return CodecPretraining(channels=4, widths=[8, 8, 8], layers=1, groups=4, mse=1.0, kl=1e-4)


def test_a_resumed_codec_keeps_its_moments(tmp_path) -> None:
    """They normalise the latents of the result and are not among the trained parameters."""
    first, second = codec(), codec()
    first._update_moments(3 + 2 * torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0)), step=0)
    torch.save(first.training_state(), tmp_path / "a.ckpt")
    second.load_training_state(torch.load(tmp_path / "a.ckpt", weights_only=True))
    assert torch.equal(first.mean_C, second.mean_C) and torch.equal(first.square_C, second.square_C)
    torch.testing.assert_close(second.mean_C, torch.full((4,), 3.0), atol=0.5, rtol=0)
    torch.testing.assert_close(second.square_C, torch.full((4,), 13.0), atol=3.0, rtol=0)


@pytest.mark.parametrize("channels", [12, 16])
def test_a_codec_starts_with_the_dct_of_patches(channels: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = CodecPretraining(
            channels=channels,
            widths=[16, 48, 128],
            layers=1,
            groups=8,
            mse=1.0,
            kl=0.0,
            start="dct",
        )
    x_BCHW = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    patches = torch.nn.functional.pixel_unshuffle(x_BCHW, 4)
    wanted = torch.einsum("kd,bdhw->bkhw", dct_basis(channels), patches)
    posterior = codec.vae.encode(x_BCHW).latent_dist
    torch.testing.assert_close(posterior.mean, wanted, rtol=1e-2, atol=1e-2)  # SiLU's cubic rest
    torch.testing.assert_close(posterior.logvar, torch.full_like(wanted, INITIAL_LOGVAR), rtol=1e-3, atol=0)


def test_the_basis_is_orthogonal_and_begins_with_the_mean_colour() -> None:
    basis = torch.nn.functional.normalize(dct_basis(48), dim=1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(48), atol=1e-5, rtol=0)
    assert (basis[0] > 0).all() and basis[0].std() < 1e-6
    assert (basis[1:].sum(dim=1).abs() < 1e-5).all()


def test_a_codec_too_narrow_for_the_dct_is_refused() -> None:
    settings = {"channels": 4, "widths": [8, 8, 8], "layers": 1, "groups": 4, "mse": 1.0, "kl": 0.0, "start": "dct"}
    with pytest.raises(ValueError, match=r"needs three levels .* not widths=\[8, 8, 8\]"):
        CodecPretraining(**settings)


def test_images_with_one_caption_are_no_negatives_of_each_other() -> None:
    assert same_caption(("a cat", "a dog", "a cat")).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    """All shipped priors' recipes, run for two steps at toy size."""
    runs = tmp_path_factory.mktemp("runs")
    common = (
        f"runs_dir={runs}",
        "data=procedural",
        "data.size=16",
        "crop=16",
        "batch_size=2",
        "workers=0",
        "max_steps=2",
        "log_every=1",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
    )
    sizes = {"vocab_size": 560, "context_length": 24, "width": 8, "layers": 1, "heads": 2}
    sizes |= {"text_width": 8, "text_layers": 1, "text_heads": 2, "projection": 8}
    clip_words = [f"stages.clip.module.{key}={value}" for key, value in sizes.items()]
    clip = fit(
        composed(
            "train",
            "experiment=priors/tiny_clip",
            *common,
            *clip_words,
            "captions.sources.scenes.count=20",
            "stages.clip.trainer.precision=32-true",
        )
    )
    prior = fit(
        composed(
            "train",
            "experiment=priors/tiny_sd",
            *common,
            "codec_steps=2",
            "stages.codec.module.channels=4",
            "stages.codec.module.start=null",
            "stages.codec.module.widths=[8,8,8]",
            "stages.codec.module.groups=4",
            "stages.codec.datamodule.batch_size=2",
            "stages.codec.trainer.precision=32-true",
            f"stages.unet.module.clip=[{clip}]",
            "stages.unet.module.unet.block_out_channels=[8,16]",
            "stages.unet.module.unet.down_block_types=[DownBlock2D,CrossAttnDownBlock2D]",
            "stages.unet.module.unet.up_block_types=[CrossAttnUpBlock2D,UpBlock2D]",
            "stages.unet.module.unet.norm_num_groups=4",
            "stages.unet.module.unet.sample_size=4",
            "stages.unet.trainer.precision=32-true",
        )
    )
    (codec_folder,) = prior.parent.glob("codec-*")
    deep = fit(
        composed(
            "train",
            "experiment=priors/tiny_sdxl",
            *common,
            "clip_steps=2",
            *clip_words,
            "captions.sources.scenes.count=20",
            "stages.clip.trainer.precision=32-true",
            f"stages.unet.module.codec={prior}/vae",
            f"stages.unet.module.clip=[{clip},stage:clip]",
            "stages.unet.module.unet.block_out_channels=[8,16]",
            "stages.unet.module.unet.down_block_types=[DownBlock2D,CrossAttnDownBlock2D]",
            "stages.unet.module.unet.up_block_types=[CrossAttnUpBlock2D,UpBlock2D]",
            "stages.unet.module.unet.transformer_layers_per_block=[1,2]",
            "stages.unet.module.unet.attention_head_dim=[4,4]",
            "stages.unet.module.unet.norm_num_groups=4",
            "stages.unet.module.unet.sample_size=4",
            "stages.unet.datamodule.batch_size=2",
            "stages.unet.datamodule.workers=0",
            "stages.unet.trainer.precision=32-true",
        )
    )
    joint = fit(
        composed(
            "train",
            "experiment=priors/tiny_sd3",
            *common,
            "codec_steps=2",
            f"stages.codec.module.start={prior}/vae",
            "stages.codec.module.channels=8",
            "stages.codec.module.widths=[8,8,8]",
            "stages.codec.module.groups=4",
            "stages.codec.datamodule.batch_size=2",
            "stages.codec.trainer.precision=32-true",
            f"stages.transformer.module.clip=[{clip},{deep}/text_encoder_2]",
            "stages.transformer.module.transformer.num_layers=2",
            "stages.transformer.module.transformer.num_attention_heads=2",
            "stages.transformer.module.transformer.attention_head_dim=4",
            "stages.transformer.module.transformer.pos_embed_max_size=4",
            "stages.transformer.trainer.precision=32-true",
        )
    )
    return {"clip": clip, "prior": prior, "codec": codec_folder, "deep": deep, "joint": joint}


def test_tiny_clip_loads_with_transformers(exported) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = exported["clip"]
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    words = CLIPTokenizer.from_pretrained(folder)(["a red circle", ""], padding="max_length", return_tensors="pt")
    processor = CLIPImageProcessor.from_pretrained(folder)
    pixels = processor(torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 16, 16)
    with torch.no_grad():
        logits = model(**words, pixel_values=pixels).logits_per_image
    assert logits.shape == (1, 2) and logits.isfinite().all()


def test_the_codec_loads_with_diffusers(exported) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(exported["codec"], torch_dtype=torch.float32)
    assert vae.config.scaling_factor == 1.0
    with torch.no_grad():
        assert vae(torch.zeros(1, 3, 16, 16)).sample.isfinite().all()


def test_the_prior_runs_in_diffusers_own_pipeline(exported) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(exported["prior"], torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("a red circle", height=16, width=16, num_inference_steps=2, output_type="np").images
    assert made.shape == (1, 16, 16, 3)


def test_the_exported_prior_loads_as_a_backbone(exported) -> None:
    backbone = load_backbone(str(exported["prior"]), family="unet")
    assert backbone.schedule.prediction_type == "v_prediction"
    assert float(backbone.schedule.alpha(999)) == 0.0
    assert (backbone.codec.compression, backbone.multiple) == (4, 8)
    z = backbone.codec.encode(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    out = backbone(z, torch.tensor([3, 999]), backbone.embed(["a red circle", ""], (16, 16)))
    assert out.shape == z.shape == (2, 4, 4, 4)
    assert out.isfinite().all()


def test_the_deep_prior_runs_in_diffusers_own_pipeline(exported) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(exported["deep"], torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("a red circle", height=16, width=16, num_inference_steps=2, output_type="np").images
    assert made.shape == (1, 16, 16, 3)


def test_the_deep_prior_reads_two_texts_and_the_size(exported) -> None:
    backbone = load_backbone(str(exported["deep"]), family="unet")
    assert len(backbone.text.encoders) == 2 and backbone.schedule.prediction_type == "v_prediction"
    assert float(backbone.schedule.alpha(999)) > 0.0  # the last sigma is finite
    cond = backbone.embed(["a red circle", ""], (16, 16), originals=[(4, 8), (16, 16)])
    assert cond.tokens_BLD.shape[2] == 16 and cond.pooled_BD is not None and cond.size_BD is not None
    assert cond.size_BD.tolist() == [[4, 8, 0, 0, 16, 16], [16, 16, 0, 0, 16, 16]]
    z = backbone.codec.encode(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert backbone(z, torch.tensor([3, 999]), cond).isfinite().all()


def test_the_joint_prior_runs_in_diffusers_own_pipeline(exported) -> None:
    """And our loop, Euler along the flow, draws what the pipeline draws."""
    from diffusers import StableDiffusion3Pipeline

    from restore_lab.random import noise_like
    from restore_lab.samplers.schedulers import euler_flow
    from tests.helpers.toy_methods import said, toy_sampler

    pipeline = StableDiffusion3Pipeline.from_pretrained(
        exported["joint"], text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    backbone = load_backbone(str(exported["joint"]), family="mmdit", t5_length=0)
    start = noise_like(torch.zeros(1, 8, 4, 4), [5], "init")
    theirs = pipeline(
        "a red circle",
        height=16,
        width=16,
        guidance_scale=1.0,
        num_inference_steps=3,
        latents=start,
        max_sequence_length=0,
        output_type="pt",
    ).images
    cond = backbone.embed(["a red circle"], (16, 16))
    sampler = toy_sampler(steps=3, scheduler=euler_flow)
    found = sampler(
        said(lambda z, t, level: backbone(z, t, cond)),
        torch.zeros_like(start),
        centre_BCHW=start,
        seeds=[5],
        schedule=backbone.schedule,
    )
    torch.testing.assert_close(backbone.codec.decode(found), theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_sd", "tiny_sdxl", "tiny_sd3", "tiny_dino", "dra_tiny_sdxl"])
def test_shipped_models_are_small_and_have_a_card(name) -> None:
    folder = place_of(f"asset:{name}")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10 * 2**20
    assert (folder / "README.md").read_text().startswith(f"# {name}")


def test_shrunk_images_pass_through_the_given_size() -> None:
    images = torch.rand(64, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    made, originals = shrink_and_enlarge(images, list(range(64)), smallest=0.25)
    whole = [i for i, size in enumerate(originals) if size == (16, 24)]
    assert 20 <= len(whole) <= 44  # half of them, within four standard deviations
    assert all(torch.equal(made[i], images[i]) for i in whole)
    assert all(4 <= height <= 16 and abs(width - 1.5 * height) <= 1 for height, width in originals)
    softest = min(range(64), key=lambda i: originals[i])
    variation = [x[..., 1:].sub(x[..., :-1]).abs().mean() for x in (made[softest], images[softest])]
    assert variation[0] < 0.5 * variation[1]
    alone, sizes = shrink_and_enlarge(images[5:6], [5], smallest=0.25)
    assert close(alone[0], made[5]) and sizes[0] == originals[5]
    assert all(size == (16, 24) for size in shrink_and_enlarge(images, list(range(64)), smallest=1.0)[1])
