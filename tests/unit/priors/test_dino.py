"""tiny_dino's training: the student's targets, trained parts, the exported folder, the shipped weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from restore_lab.data.image_io import to_tensor
from restore_lab.data.sources.procedural import ProceduralSource
from restore_lab.degradation.noise import gaussian_noise
from restore_lab.priors.dino import DinoPretraining, teacher_features
from restore_lab.prompts.visual import ClipVision, DinoVision
from restore_lab.storage.paths import place_of
from restore_lab.training.run import fit
from restore_lab.types import Batch
from tests.helpers.configs import composed


@pytest.fixture(scope="module")
def clip() -> ClipVision:
    return ClipVision(path="asset:tiny_clip")


def scenes(count: int, *, seed: int = 5) -> torch.Tensor:
    source = ProceduralSource(seed=seed, size=64, length=count)
    pictures = [source.read(index).hq_HWC for index in range(count)]
    return torch.stack([to_tensor(picture) for picture in pictures if picture is not None])


def noisy(hq_BCHW: torch.Tensor, *, sigma: float) -> torch.Tensor:
    return torch.stack([gaussian_noise(x, sigma=sigma, grey=False, seed=i) for i, x in enumerate(hq_BCHW.clone())])


def batch(count: int = 4) -> Batch:
    hq_BCHW = scenes(count)
    return Batch(
        hq_BCHW=hq_BCHW,
        lq_BCHW=noisy(hq_BCHW, sigma=0.1),
        caption=("",) * count,
        key=tuple(str(i) for i in range(count)),
        seed=tuple(range(count)),
        recipe=(None,) * count,
    )


def toy(clip: ClipVision, *, seed: int = 0, image_size: int = 64, **changes) -> DinoPretraining:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DinoPretraining(
            teacher=clip,
            image_size=image_size,
            patch_size=8,
            width=16,
            layers=1,
            heads=2,
            **changes,
        )


def test_the_teacher_teaches_its_embedding_and_normalised_patches(clip) -> None:
    hq_BCHW = scenes(2)
    embedding_BE, patches_BLD = teacher_features(clip, hq_BCHW, layer=-2)
    torch.testing.assert_close(embedding_BE, clip(hq_BCHW)[:, 0])
    assert patches_BLD.shape == (2, 64, 128)  # no class token among them
    torch.testing.assert_close(patches_BLD.mean(dim=2), torch.zeros(2, 64), atol=1e-4, rtol=0)
    torch.testing.assert_close(patches_BLD.var(dim=2, correction=0), torch.ones(2, 64), atol=1e-3, rtol=0)
    assert not torch.allclose(patches_BLD, teacher_features(clip, hq_BCHW, layer=-1)[1], atol=0.1)


def test_patches_are_matched_by_position(clip) -> None:
    """Only the patches' loss reaches the pixels of each patch, by its place in the teacher."""
    module, one = toy(clip), batch(2)
    assert one.hq_BCHW is not None
    whole = teacher_features(clip, one.hq_BCHW, layer=0)[1]
    changed = one.hq_BCHW.clone()
    changed[:, :, 8:16, 16:24] = 1 - changed[:, :, 8:16, 16:24]  # row 1, column 2
    moved = (teacher_features(clip, changed, layer=0)[1] - whole).abs().amax(dim=(0, 2))
    with torch.no_grad():
        seen = (module.student.embeddings(changed) - module.student.embeddings(one.hq_BCHW)).abs().amax(dim=(0, 2))
    assert moved.nonzero().flatten().tolist() == seen[1:].nonzero().flatten().tolist() == [8 + 2]


def test_only_the_student_and_its_heads_learn(clip) -> None:
    module, one = toy(clip).train(), batch()
    assert {name.split(".")[0] for name in module.trainable()} == {"student", "class_head", "patch_head"}
    assert not clip.training
    before = {name: p.clone() for name, p in clip.named_parameters()}
    optimiser = torch.optim.AdamW(module.param_groups(), lr=3e-3)
    losses = []
    for step in range(12):
        loss = module.loss(one, step=step)["loss"]
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            assert [name for name, p in module.trainable().items() if p.grad is None] == []
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in clip.named_parameters())


def test_the_loss_has_two_parts_and_the_degraded_image_is_what_is_seen(clip) -> None:
    one = batch()
    whole, half, none = (toy(clip, patches=weight).loss(one, step=0)["loss"].item() for weight in (1.0, 0.5, 0.0))
    assert whole > half > none > 0
    assert whole - half == pytest.approx(half - none, rel=1e-4)
    clean = replace(one, lq_BCHW=one.hq_BCHW)
    assert toy(clip).loss(clean, step=0)["loss"].item() != pytest.approx(whole, rel=1e-5)


def test_missing_inputs_are_named(clip) -> None:
    module, one = toy(clip), batch()
    with pytest.raises(ValueError, match="teacher looks at clean images; this data source gave none"):
        module.loss(replace(one, hq_BCHW=None), step=0)
    with pytest.raises(ValueError, match="choose a degradation"):
        module.loss(replace(one, lq_BCHW=None), step=0)
    with pytest.raises(ValueError, match=r"image_size=32 and patch_size=8 give 4 patches a side, the teacher has 8"):
        toy(clip, image_size=32)


@pytest.mark.parametrize("size", [(64, 64), (72, 96)])
def test_the_exported_folder_equals_the_student(clip, tmp_path, size) -> None:
    module = toy(clip).eval()
    image_BCHW = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = module.tokens(image_BCHW)
    module.export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    vision = DinoVision(path=str(tmp_path))
    assert (vision.short, vision.crop, vision.width) == (64, 64, 16)
    theirs = vision(image_BCHW)
    assert theirs.shape == (2, 65, 16)
    torch.testing.assert_close(theirs, ours, atol=2e-2, rtol=1e-2)


def test_the_recipe_trains_and_its_result_loads(tmp_path) -> None:
    sizes = {"width": 8, "layers": 1, "heads": 2}
    cfg = composed(
        "train",
        "experiment=priors/tiny_dino",
        "data=procedural",
        f"runs_dir={tmp_path}",
        "batch_size=2",
        "workers=0",
        "max_steps=2",
        "log_every=1",
        "trainer.accelerator=cpu",
        "stages.dino.trainer.precision=32-true",
        *(f"stages.dino.module.{key}={value}" for key, value in sizes.items()),
    )
    folder = fit(cfg)
    assert DinoVision(path=str(folder))(scenes(1)).isfinite().all()
    assert len((folder / "losses.jsonl").read_text().splitlines()) == 2


def test_the_shipped_dino_recognises_degraded_scenes() -> None:
    """A noisy scene's class token is nearer to the clean scene's than to any other's; 40 scenes it never saw."""
    folder = place_of("asset:tiny_dino")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2.5e6
    vision = DinoVision(path="asset:tiny_dino")
    hq_BCHW = scenes(40)
    clean_BLD, noisy_BLD = vision(hq_BCHW), vision(noisy(hq_BCHW, sigma=0.1))
    assert clean_BLD.shape == (40, 65, vision.width)
    centre_D = clean_BLD[:, 0].mean(dim=0)
    clean, seen = (F.normalize(tokens[:, 0] - centre_D, dim=1) for tokens in (clean_BLD, noisy_BLD))
    cosine_BB = seen @ clean.T
    assert (cosine_BB.argmax(dim=1) == torch.arange(40)).sum() >= 39
    assert cosine_BB.diag().mean() > 0.95  # its teacher, which was not made robust, has 0.90
