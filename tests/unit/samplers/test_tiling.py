"""Sampling in tiles: exact for a local model, bit-identical for one tile; the conditions of a tile."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from restore_lab.evaluation.metrics.seams import edges, seams
from restore_lab.methods.pipeline import captioning_batches
from restore_lab.samplers.tiling import Gaussian, TileBatch, Tiles, TilesTooLarge, starts
from restore_lab.types import Batch, Cond, Hint
from tests.helpers.rounding import close
from tests.helpers.toy_methods import shake, toy_batch, toy_spire


def gaussian(*, tile: int | None = 32, overlap: int = 8, batch: int = 3, words: str = "image") -> Gaussian:
    return Gaussian(tile=tile, overlap=overlap, batch=batch, sigma=0.1, words=words)


def tiles(size: tuple[int, int], tile: tuple[int, int], *, overlap: int = 2, batch: int = 3) -> Tiles:
    return Tiles(size=size, tile=tile, overlap=overlap, compression=4, settings=gaussian(batch=batch))


def latent(height: int, width: int, *, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 4, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def module():
    made = toy_spire("sd", scale=2.0)
    shake(made.adaptor, size=0.05)
    return made.eval()


@pytest.mark.parametrize(("whole", "part", "overlap"), [(10, 10, 2), (11, 10, 2), (100, 16, 4), (33, 16, 8), (5, 9, 1)])
def test_windows_cover_a_side_from_end_to_end(whole, part, overlap) -> None:
    found = starts(whole, part, overlap)
    assert found[0] == 0 and (part >= whole or found[-1] == whole - part)
    assert all(a < b <= a + part - overlap for a, b in itertools.pairwise(found))
    assert len(found) == (1 if part >= whole else 1 + -(-(whole - part) // (part - overlap)))  # and no more than needed


@pytest.mark.parametrize("size", [(20, 20), (9, 70), (41, 8)])
def test_a_local_model_gives_the_same_in_tiles(size) -> None:
    z = latent(*size)
    made = tiles(size, (min(8, size[0]), 8)).blend(lambda part: part.crop(z).square() + 1, z)
    torch.testing.assert_close(made, z.square() + 1, atol=1e-5, rtol=1e-5)


def test_overlaps_are_blended_by_their_weights() -> None:
    z, cut = latent(8, 14, count=1), tiles((8, 14), (8, 8), overlap=2, batch=1)
    assert cut.windows == [(0, 0), (0, 6)]
    made = cut.blend(lambda part: torch.full((1, 1, 8, 8), float(part.indices[0])), z)[0, 0, 0]
    u = torch.tensor([6.5, 7.5]) / 8 - 0.5
    left, right = torch.exp(-u.square() / 0.02), torch.exp(-u.flip(0).square() / 0.02)
    torch.testing.assert_close(made, torch.cat([torch.zeros(6), right / (left + right), torch.ones(6)]))


def test_conditions_and_hints_are_cropped_per_tile() -> None:
    cut, z = tiles((16, 12), (8, 8), batch=2), latent(16, 12)
    part = TileBatch(cut, range(1, 3), 2)
    rows = torch.arange(2.0)[:, None, None].expand(2, 3, 5)
    hint = Hint(lq_BCHW=torch.rand(2, 3, 64, 48), lq_latent_BCHW=z, instruction_BLD=rows, empty=Cond(tokens_BLD=rows))
    seen = part.hint(hint)
    (top, left), image = cut.windows[2], 1
    assert torch.equal(seen.lq_latent_BCHW[2 + image], z[image, :, top : top + 8, left : left + 8])
    assert torch.equal(
        seen.lq_BCHW[2 + image], hint.lq_BCHW[image, :, 4 * top : 4 * top + 32, 4 * left : 4 * left + 32]
    )
    assert seen.instruction_BLD[:, 0, 0].tolist() == seen.empty.tokens_BLD[:, 0, 0].tolist() == [0, 1, 0, 1]
    own = torch.arange(2.0 * len(cut.windows))[:, None, None]  # a row for each tile
    assert part.cond(Cond(tokens_BLD=own)).tokens_BLD.flatten().tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("size", [(16, 16), (32, 20)])
def test_an_image_of_one_tile_equals_one_without_tiles(module, size) -> None:
    batch = toy_batch(size=size)
    module.sampler.tiling = None
    whole = module.restore(batch)
    module.sampler.tiling = gaussian(tile=32)
    assert close(module.restore(batch), whole)


@pytest.mark.parametrize("size", [(60, 60), (24, 100)])
def test_batches_of_tiles_or_images_change_no_result(module, size) -> None:
    batch = toy_batch(size=size)
    module.sampler.tiling = gaussian(batch=1)
    one = module.restore(batch)
    assert one.shape == batch.lq_BCHW.shape
    module.sampler.tiling = gaussian(batch=5)
    torch.testing.assert_close(module.restore(batch), one, atol=2e-5, rtol=0)
    alone = batch.select([1])
    assert alone is not None
    torch.testing.assert_close(module.restore(alone), one[1:], atol=2e-5, rtol=0)


def test_the_prior_gets_the_size_of_a_tile() -> None:
    found: list[tuple[int, int]] = []
    module = toy_spire("sd")
    cond = module.conditioner.cond
    module.conditioner.cond = lambda prompt, size: found.append(size) or cond(prompt, size)
    module.sampler.tiling = gaussian(tile=32)
    module.restore(toy_batch(1, size=(10, 90)))
    assert found == [(16, 32)]  # the height is padded


def test_a_tile_may_have_its_caption(module) -> None:
    batch = toy_batch(size=(24, 60))
    seen: list[Batch] = []
    old = module.conditioner.prompts
    module.conditioner.prompts = lambda some, *, training: (
        seen.append(some) or old(replace(some, caption=tuple(f"{key}" for key in some.key)), training=training)
    )
    cut = gaussian(words="tile").tiles((24, 64), module.backbone)
    padded = replace(batch, lq_BCHW=torch.rand(2, 3, 24, 64), hq_BCHW=None)
    try:
        conditions = module.conditioner(padded, tiles=cut)
        module.sampler.tiling = gaussian(words="tile")
        assert module.restore(batch).shape == batch.lq_BCHW.shape
    finally:
        module.conditioner.prompts = old
    keys = [key for some in seen[:1] for key in some.key]
    assert keys == [f"key_{i}@{4 * left},{4 * top}" for top, left in cut.windows for i in range(2)]
    assert seen[0].lq_BCHW.shape == (6, 3, 24, 32)
    cond, null, hint = conditions.cond, conditions.null, conditions.hint
    assert len(cond.tokens_BLD) == len(null.tokens_BLD) == len(hint.instruction_BLD) == 6
    assert torch.equal(cond.tokens_BLD[3], module.backbone.embed([keys[3]], (24, 32)).tokens_BLD[0])
    assert hint.lq_BCHW is padded.lq_BCHW
    ahead = list(captioning_batches(module, batch))  # a captioner is asked about the same tiles before
    assert [key for some in ahead for key in some.key] == keys
    assert all(some.lq_BCHW.shape == (2, 3, 32, 32) for some in ahead)  # padded first
    module.sampler.tiling = gaussian(words="image")
    assert list(captioning_batches(module, batch)) == [batch]


def failing(monkeypatch, module, *, fits) -> list[tuple[int, ...]]:
    """The prior runs out of memory for latents that do not fit; the shapes that it was asked for."""
    asked: list[tuple[int, ...]] = []
    old = type(module.backbone).forward

    def forward(self, z_BCHW, *rest, **more):
        asked.append(tuple(z_BCHW.shape))
        if not fits(z_BCHW):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return old(self, z_BCHW, *rest, **more)

    monkeypatch.setattr(type(module.backbone), "forward", forward)
    return asked


def test_out_of_memory_halves_the_batch_then_the_tile(module, monkeypatch, caplog) -> None:
    batch = toy_batch(1, size=(64, 80))
    module.sampler.tiling = gaussian(tile=32, batch=1)
    expected = module.restore(batch)
    asked = failing(monkeypatch, module, fits=lambda z: len(z) <= 2 and z.shape[-1] <= 8)
    module.sampler.tiling = gaussian(tile=64, batch=4)
    torch.testing.assert_close(module.restore(batch), expected, atol=2e-5, rtol=0)
    assert "out of memory: 1 tiles at once" in caplog.text
    assert "tiles of 32 pixels in the place of 64" in caplog.text
    assert module.sampler.tiling.tile == 32 and module.sampler.tiling.batch == 1
    assert "guidance branches one after another" in caplog.text
    assert [shape[0] for shape in asked[:3]] == [4, 2, 1]
    caplog.clear()
    module.restore(batch)  # the next image starts where this one ended
    assert "out of memory" not in caplog.text


def test_an_image_out_of_memory_continues_in_tiles(module, monkeypatch, caplog) -> None:
    failing(monkeypatch, module, fits=lambda z: z.shape[-1] <= 8)
    module.sampler.tiling = gaussian(tile=64, batch=2)
    batch = toy_batch(1, size=(64, 64))
    assert module.restore(batch).shape == batch.lq_BCHW.shape
    assert "tiles of 32 pixels" in caplog.text


def test_out_of_memory_at_the_smallest_tile_is_raised(module, monkeypatch) -> None:
    failing(monkeypatch, module, fits=lambda z: False)
    module.sampler.tiling = gaussian(tile=64)
    with pytest.raises(RuntimeError, match="memory") as caught:
        module.restore(toy_batch(1, size=(64, 80)))
    assert isinstance(caught.value, TilesTooLarge | torch.OutOfMemoryError)
    failing(monkeypatch, module, fits=lambda z: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        module.restore(toy_batch(1, size=(64, 80)))


def test_the_default_tile_follows_the_prior_and_bad_sizes_are_refused(module) -> None:
    assert gaussian(tile=None).side(module.backbone) == 512
    assert gaussian(tile=50).side(module.backbone) == 64  # up to what the prior can see
    with pytest.raises(ValueError, match=r"sampler\.tiling\.overlap=20 must be from 0 to half of tile"):
        gaussian(overlap=20)


def test_blending_hides_seams_that_cropping_leaves() -> None:
    """Tiles that disagree by an offset each: with weights no step is left at the edges, averaged alike there is."""
    z, size = latent(64, 64, count=1), (64, 64)
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64) + torch.linspace(0, 1, 64)[:, None]
    lines = edges(64, tile=24, overlap=8)

    def offset(part: TileBatch) -> torch.Tensor:
        signs = torch.tensor([(-1.0) ** n for n in part.indices])[:, None, None, None]
        return part.crop(0.25 * ramp) + 0.05 * signs

    blended = tiles(size, (24, 24), overlap=8).blend(offset, z)
    uniform = tiles(size, (24, 24), overlap=8)
    uniform.weight_HW = torch.ones(24, 24)
    uniform.total_HW = torch.zeros(64, 64)
    for top, left in uniform.windows:
        uniform.total_HW[top : top + 24, left : left + 24] += 1
    flat = uniform.blend(offset, z)
    at = [seams(image, rows=lines, columns=lines, reach=1).item() for image in (blended, flat)]
    assert at[0] < 1.0 < 20 < at[1]
