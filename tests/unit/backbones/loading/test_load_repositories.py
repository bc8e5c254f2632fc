"""Public repositories' layouts load from a path and from the hub's cache; no pickle is opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from restore_lab.backbones.loading.diffusers_folder import BackboneError
from restore_lab.backbones.loading.load import load_backbone
from restore_lab.backbones.loading.places import files_to_download
from tests.helpers.toy_priors import MMDIT, TEXT_LENGTH
from tests.helpers.toy_repositories import (
    HUB,
    SCHEDULERS,
    TOY,
    halved,
    in_hub_cache,
    public_keys,
    write_repository,
    write_weights,
)

T5_LENGTH = 4


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Each repository and what it was written from; do not write into them."""
    root = tmp_path_factory.mktemp("hub")
    return {name: (root / name, write_repository(root / name, name)) for name in HUB}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def family(name: str) -> str:
    return "mmdit" if TOY[name] in MMDIT else "unet"


def loaded(place: Any, name: str, **options: Any) -> Any:
    return load_backbone(str(place), family=family(name), **{"t5_length": T5_LENGTH, **options})


def states(backbone: Any, name: str) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of a backbone by part."""
    encoders = [*backbone.text.encoders, *([backbone.text.t5] if family(name) == "mmdit" else [])]
    found = {"vae": backbone.codec.vae, "transformer" if family(name) == "mmdit" else "unet": backbone.denoiser}
    found |= {f"text_encoder{f'_{i + 1}' if i else ''}": encoder for i, encoder in enumerate(encoders)}
    return {part: module.state_dict() for part, module in found.items()}


@pytest.mark.parametrize("where", ["folder", "hub"])
@pytest.mark.parametrize("name", HUB)
def test_every_public_layout_loads(name, where, repositories, cache) -> None:
    folder, parts = repositories[name]
    if where == "hub":
        in_hub_cache(folder, cache, HUB[name])
    backbone = loaded(folder if where == "folder" else HUB[name], name)
    found = states(backbone, name)
    assert found.keys() == parts.keys()
    for part, module in parts.items():
        expected = module.state_dict()
        assert found[part].keys() == expected.keys()
        assert all(torch.equal(found[part][key], value) for key, value in expected.items()), part
    cond = backbone.embed(["a cat", ""], (32, 32))
    assert cond.tokens_BLD.shape[1] == TEXT_LENGTH + (T5_LENGTH if family(name) == "mmdit" else 0)
    assert backbone.codec.decode(backbone.codec.encode(torch.rand(1, 3, 32, 32))).isfinite().all()
    prediction = "flow" if family(name) == "mmdit" else SCHEDULERS[name].get("prediction_type", "epsilon")
    assert backbone.schedule.prediction_type == prediction
    assert not (folder / "opened").exists()


def test_text_is_encoded_by_the_repositorys_tokenizer(repositories) -> None:
    """SDXL's second tower pads with "!", its first with the end of text."""
    backbone = loaded(repositories["sdxl"][0], "sdxl")
    first, second = (backbone.text._ids(["hi"], index)[0][0].tolist() for index in (0, 1))
    assert first[:3] == second[:3]
    end, exclamation = (backbone.text.tokenizers[0].get_vocab()[word] for word in ("<|endoftext|>", "!"))
    assert first[4:] == [end] * (TEXT_LENGTH - 4)
    assert second[4:] == [exclamation] * (TEXT_LENGTH - 4)


def test_an_old_codec_config_gets_the_default_scale(repositories) -> None:
    assert loaded(repositories["sd15"][0], "sd15").codec.scale == (0.18215,)


def only_half(folder: Path, part: str) -> None:
    """Take a part's plain weights away."""
    for file in (folder / part).glob("*model*"):
        if ".fp16" not in file.name:
            file.unlink()


def equal_to_halves(backbone: Any, name: str, parts: dict[str, Any], part: str) -> bool:
    expected = {key: value.half().float() for key, value in parts[part].state_dict().items()}
    return all(torch.equal(states(backbone, name)[part][key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("name", "part"), [("sdxl", "unet"), ("sdxl", "text_encoder_2"), ("sd3", "text_encoder_3"), ("sd3", "vae")]
)
def test_the_fp16_variant_is_read_where_it_is_the_only_one(name, part, repositories, tmp_path) -> None:
    folder = shutil.copytree(repositories[name][0], tmp_path / "half")
    only_half(folder, part)
    backbone = loaded(folder, name)
    assert equal_to_halves(backbone, name, repositories[name][1], part)


def test_pickles_next_to_the_fp16_variant_are_not_opened(repositories, tmp_path) -> None:
    folder = shutil.copytree(repositories["sd15"][0], tmp_path / "half")
    for part in ("unet", "vae", "text_encoder"):
        for file in (folder / part).glob("*model.safetensors"):
            file.unlink()
    assert len(list(folder.glob("*/*.bin"))) == 6
    backbone = loaded(folder, "sd15")
    assert all(equal_to_halves(backbone, "sd15", repositories["sd15"][1], part) for part in ("unet", "vae"))
    assert not (repositories["sd15"][0] / "opened").exists()


def test_incomplete_shards_give_way_to_the_fp16_variant(repositories, tmp_path) -> None:
    folder = shutil.copytree(repositories["sd3"][0], tmp_path / "part")
    (folder / "text_encoder_3" / "model-00002-of-00002.safetensors").unlink()
    assert equal_to_halves(loaded(folder, "sd3"), "sd3", repositories["sd3"][1], "text_encoder_3")
    (folder / "text_encoder_3" / "model.fp16-00001-of-00002.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"text_encoder_3: weights cannot be read .*not all the shards") as caught:
        loaded(folder, "sd3")
    assert "\n" not in str(caught.value)


def test_old_names_of_sharded_fp16_files_are_read(repositories, tmp_path) -> None:
    folder = shutil.copytree(repositories["sd35_large"][0], tmp_path / "old")
    part, stem = folder / "transformer", "diffusion_pytorch_model"
    state = halved(public_keys("transformer", repositories["sd35_large"][1]["transformer"], old=False))
    only_half(folder, "transformer")
    write_weights(part, state, stem=stem, shards=2)
    renamed = {f.name: f"{f.name.removesuffix('.safetensors')}.fp16.safetensors" for f in part.glob("*-of-*")}
    for old, new in renamed.items():
        (part / old).rename(part / new)
    index = json.loads((part / f"{stem}.safetensors.index.json").read_text())
    index["weight_map"] = {key: renamed[file] for key, file in index["weight_map"].items()}
    (part / f"{stem}.safetensors.index.json").unlink()
    (part / f"{stem}.safetensors.fp16.index.json").write_text(json.dumps(index))
    backbone = loaded(folder, "sd35_large")
    assert equal_to_halves(backbone, "sd35_large", repositories["sd35_large"][1], "transformer")


def test_a_folder_with_only_a_pickle_is_refused_in_one_line(repositories, tmp_path) -> None:
    folder = shutil.copytree(repositories["sd15"][0], tmp_path / "pickled")
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(BackboneError, match=r"unet: weights cannot be read \(diffusion_pytorch_model.*is a pickle"):
        loaded(folder, "sd15")
    assert not (repositories["sd15"][0] / "opened").exists()


def test_an_incomplete_download_is_not_a_prior(repositories, cache) -> None:
    snapshot = in_hub_cache(repositories["sd3"][0], cache, HUB["sd3"])
    for file in (snapshot / "text_encoder_3").glob("*00002-of*"):
        file.unlink()
    with pytest.raises(BackboneError, match="no hub gave it"):
        loaded(HUB["sd3"], "sd3")


def test_an_excluded_part_is_not_downloaded(repositories, cache) -> None:
    folder, _ = repositories["sd3"]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    chosen = files_to_download(files, without=["text_encoder_3"])
    spared = sorted(set(files_to_download(files)) - set(chosen))
    assert [Path(file).name for file in spared] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    snapshot = in_hub_cache(folder, cache, HUB["sd3"])
    for file in files:
        if file not in chosen:
            (snapshot / file).unlink()
    assert loaded(HUB["sd3"], "sd3", without=["text_encoder_3"]).text.t5 is None
    with pytest.raises(BackboneError, match="no hub gave it"):  # its config says that there should be one
        loaded(HUB["sd3"], "sd3")


def test_hub_ids_are_tried_in_order(repositories, cache) -> None:
    in_hub_cache(repositories["sd21"][0], cache, "second/place")
    backbone = load_backbone(["first/place", "second/place"], family="unet")
    assert backbone.schedule.prediction_type == "v_prediction"


def test_a_gated_repository_names_the_way_to_access(cache, monkeypatch) -> None:
    from httpx import Request, Response
    from huggingface_hub.errors import GatedRepoError

    def refuse(self: Any, name: str) -> list[str]:
        raise GatedRepoError("401", response=Response(401, request=Request("GET", "https://huggingface.co")))

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", refuse)
    with pytest.raises(
        BackboneError, match=r"is gated; accept its licence at https://huggingface.co/stabilityai/"
    ) as e:
        loaded(HUB["sd3"], "sd3")
    assert "hf auth login" in str(e.value)


@pytest.mark.parametrize("name", HUB)
def test_only_a_priors_files_are_downloaded_and_once(name, repositories, tmp_path) -> None:
    folder, _ = repositories[name]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    chosen = files_to_download(files)
    assert not [file for file in chosen if ".fp16" in file or ".bin" in file or "non_ema" in file or "onnx" in file]
    assert not [file for file in chosen if file.startswith(("safety_checker", "vae_", "v1-5", "sd_xl"))]
    for file in chosen:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / file, tmp_path / file)
    assert loaded(tmp_path, name).embed(["a"], (32, 32)).tokens_BLD.isfinite().all()


def test_the_fp16_variant_is_downloaded_where_there_is_no_other() -> None:
    files = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.onnx"]
    assert files_to_download(files) == ["model_index.json", *files[1:3]]
