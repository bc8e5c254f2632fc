"""What a later stage would refuse is refused before the first stage trains, with the stage's name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from restore_lab.evaluation.evaluate import evaluate
from restore_lab.inference.captioning import find_captioners
from restore_lab.inference.restorer import load_method
from restore_lab.methods.meta import check_module
from restore_lab.training import run as fit_module
from restore_lab.training.plan import plan_stages
from restore_lab.training.run import fit
from tests.helpers.configs import composed, small
from tests.helpers.toy_priors import toy_unet_folder

METHODS = {"supir": "sdxl", "diff_restorer": "sd", "instantir": "sdxl", "dra": "sdxl"}
DEVICES = ("trainer.accelerator=cpu", "trainer.devices=1")


@pytest.fixture(scope="module")
def priors(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("priors")
    return {kind: toy_unet_folder(folder, kind) for kind in set(METHODS.values())}


@pytest.fixture
def fitting(priors, tmp_path, monkeypatch):
    """`fit` with a toy prior; a training that begins is a failure."""

    def began(*args, **how):
        raise AssertionError("a stage began")

    monkeypatch.setattr(fit_module, "_train", began)

    def run(method: str, *words: str, edit=lambda cfg: None):
        prior = priors[METHODS[method]]
        sizes = ("data.size=16", "crop=16", "batch_size=2", "workers=0", "progress=false")
        cfg = composed("train", f"method={method}", f"backbone.path={prior}", f"runs_dir={tmp_path}", *sizes, *words)
        edit(cfg)
        return fit(cfg)

    return run


REFUSALS = {
    "weights of another adaptor": (
        "supir",
        ("weights=asset:spire_tiny_sd",),
        r"stage adaptor: .*spire_tiny_sd.*does not fit this adaptor: .* missing of its \d+ tensors, \d+ unknown of",
    ),
    "weights that are not there": ("supir", ("weights=nowhere",), r"stage adaptor: nowhere: no such weights"),
    "a batch that the last stage cannot share": (
        "diff_restorer",
        ("trainer.devices=2", "decoder_batch_size=3"),
        r"stage decoder: batch_size=3 does not divide among 2 processes",
    ),
    "a stage's devices": (
        "supir",
        ("+stages.adaptor.trainer.devices=3",),
        r"stage adaptor: batch_size=2 does not divide among 3 processes",
    ),
    "a stage without an end": (
        "supir",
        ("stages.adaptor.trainer.max_steps=null",),
        r"stage adaptor: nothing ends this training",
    ),
    "data that is not there": (
        "diff_restorer",
        ("stages.decoder.datamodule.train={_target_:restore_lab.data.sources.folder.FolderSource,root:nowhere}",),
        r"stage decoder: nowhere",
    ),
    "a decoder with nothing to train": (
        "diff_restorer",
        ("decoder=codec",),
        r"stage decoder: this decoder has nothing to train; choose decoder=degradation_aware",
    ),
    "a perceptual loss's weights": ("diff_restorer", ("vgg19=nowhere",), r"stage decoder: vgg19=nowhere: no such file"),
    "an encoder's weights": ("supir", ("encoder_weights=nowhere",), r"stage adaptor: nowhere: no such weights"),
    "an image encoder": (
        "supir",
        ("prompt/visual=clip", "prompt.visual.path=./nowhere"),
        r"stage adaptor: prompt\.visual\.path=\./nowhere: neither an image encoder's folder nor a config that we ship",
    ),
    "a captioner": (
        "supir",
        ("prompt/semantic=vlm",),
        r"stage adaptor: prompt/semantic=vlm captions what is restored; for training caption the clean images first",
    ),
    "an absent part": (
        "instantir",
        ("adaptor.lora=null",),
        r"stage dcp: module.frozen: this adaptor has no 'lora'",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_later_stage_is_refused_before_the_first_trains(case, fitting, tmp_path) -> None:
    method, words, said = REFUSALS[case]
    with pytest.raises(ValueError, match=said) as caught:
        fitting(method, *DEVICES, *words)
    assert "\n" not in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("method", "stage", "before", "at"),
    [
        ("instantir", "previewer", "dcp", "adaptor.stream.queries"),
        ("diff_restorer", "decoder", "adaptor", "processor.hidden"),
    ],
)
def test_weights_of_an_earlier_stage_are_checked_for_fit(method, stage, before, at, fitting, tmp_path) -> None:
    """A stage that was given a method of its own cannot take the weights of the one before."""

    def narrow(cfg) -> None:
        own = OmegaConf.create(OmegaConf.to_container(cfg.module, resolve=True))
        OmegaConf.update(own, at, 3)
        cfg.stages[stage].module.restorer = own

    said = rf"stage {stage}: stage:{before}/adaptor\.safetensors: does not fit this adaptor: \d+ of another shape"
    with pytest.raises(ValueError, match=said):
        fitting(method, *DEVICES, edit=narrow)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(AssertionError, match="a stage began"):
        fitting(method, *DEVICES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_an_absent_device_is_refused_before_the_first_stage(fitting) -> None:
    with pytest.raises(ValueError, match=r"stage encoder: trainer: .*CUDAAccelerator.* can not run on your system"):
        fitting("supir", "trainer.accelerator=cuda")
    with pytest.raises(ValueError, match=r"stage adaptor: trainer: .*CUDAAccelerator"):
        fitting("supir", *DEVICES, "+stages.adaptor.trainer.accelerator=cuda")


@pytest.mark.parametrize("method", METHODS)
def test_every_later_stage_of_every_method_passes_preflight(method) -> None:
    """None is passed over because it would not build without weights."""
    for stage in plan_stages(composed("train", f"method={method}"))[1:]:
        module = check_module(stage.node)
        assert module is not None and module.trainable()
        assert all(p.is_meta for p in module.trainable().values())


@pytest.fixture(scope="module")
def unreadable(toy_folder, tmp_path_factory) -> Path:
    """A prior whose weights cannot be read: whatever reads them fails for another reason than a test's."""
    place = tmp_path_factory.mktemp("unreadable") / "prior"
    shutil.copytree(toy_folder, place)
    for file in place.rglob("*.safetensors"):
        file.write_bytes(b"no weights")
    return place


UNFIT = {
    "asset:spire_tiny_sd": r"does not fit this adaptor: \d+ of another shape than its \d+ tensors",
    "empty": r"empty/adaptor\.safetensors: no such weights; train some",
    "text.safetensors": r"text\.safetensors: no adaptor weights, or damaged",
}


@pytest.mark.parametrize("verb", ["restore", "evaluate"])
@pytest.mark.parametrize("weights", UNFIT)
def test_unusable_weights_are_refused_before_a_prior_is_read(verb, weights, unreadable, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    place = weights if weights.startswith("asset:") else tmp_path / weights
    own = "input=x" if verb == "restore" else f"runs_dir={tmp_path}"
    words = ("follow=false", "device=cpu", f"weights={place}", own)
    cfg = composed(verb, *small(unreadable), *words)
    with pytest.raises(ValueError, match=UNFIT[weights]) as caught:
        load_method(cfg) if verb == "restore" else evaluate(cfg)
    assert "\n" not in str(caught.value)
    cfg.weights = None
    with pytest.raises(ValueError, match="unreadable"):  # the prior
        load_method(cfg)


def test_a_missing_captioner_is_refused_before_a_prior_is_read(tmp_path) -> None:
    cfg = composed(
        "evaluate", "prompt/semantic=vlm", "prompt.semantic.captioner.model=./nowhere", f"runs_dir={tmp_path}"
    )
    with pytest.raises(ValueError, match=r"captioner\.model=\./nowhere: cannot be used"):
        find_captioners(cfg.prompt, None)
    find_captioners(composed("evaluate").prompt, {"plain": {"semantic": None}})
