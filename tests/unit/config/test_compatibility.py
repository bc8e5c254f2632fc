"""Incompatible parts are refused from the config, in one line that names parts that work; and those work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from restore_lab.config.compatibility import IncompatibleParts, check_compatibility
from tests.helpers.configs import composed

REFUSED = [
    (
        ("backbone=tiny_sd3", "adaptor/fusion=modulation_decoder"),
        "use adaptor/fusion=modulation",
        ("adaptor/fusion=modulation",),
    ),
    (
        ("backbone=tiny_sd3", "adaptor/fusion=zero_sft_attention"),
        "use adaptor/fusion=zero_sft",
        ("adaptor/fusion=zero_sft",),
    ),
    (("backbone=tiny_sd3", "decoder=consistency"), "use decoder=codec", ("decoder=codec",)),
    (("backbone=tiny_sd3", "adaptor.trunk.depth=[1,2]"), "give whole, half or a number", ("adaptor.trunk.depth=2",)),
    (("backbone=tiny_sd", "adaptor.trunk.depth=2"), "give whole, half or a list", ("adaptor.trunk.depth=half",)),
    (("adaptor/stream=dcp",), "set prompt/visual=dino", ("prompt/visual=dino",)),
    (("method=diff_restorer", "prompt/visual=none"), "set prompt/visual=clip", ("prompt/visual=clip",)),
    (
        ("method=diff_restorer", "adaptor=spire"),
        "set module.reconstruction_weight=0",
        ("module.reconstruction_weight=0",),
    ),
    (
        ("adaptor=diff_restorer", "adaptor.encoder.embedding=64"),
        "set adaptor.encoder.embedding=0",
        ("adaptor.encoder.embedding=0",),
    ),
    (("sampler/fidelity=adares",), "use adaptor=instantir", ("adaptor=instantir", "prompt/visual=dino")),
    (("method=instantir", "adaptor/lora=none"), "adaptor/reference=mean", ("adaptor/reference=mean",)),
    (
        ("method=instantir", "adaptor/stream=none"),
        "adaptor/reference=preview_unconditional",
        ("adaptor/reference=preview_unconditional",),
    ),
    *(
        ((f"sampler={name}", f"{place}.steps_offset=1"), f"set {place}.timestep_spacing=leading", (mended,))
        for name, place in (("ddim", "sampler.scheduler"), ("lcm", "sampler.scheduler"), ("edm", "sampler"))
        for mended in (f"{place}.timestep_spacing=leading", f"{place}.steps_offset=0")
    ),
    (("adaptor.trunk.feed=spatial",), "adaptor.hint_widths=null", ("adaptor.hint_widths=null",)),
]


@pytest.mark.parametrize(("words", "advice", "mended"), REFUSED, ids=[" ".join(words) for words, _, _ in REFUSED])
def test_incompatible_parts_are_refused_with_ones_that_work(words, advice, mended) -> None:
    with pytest.raises(IncompatibleParts) as caught:
        check_compatibility(composed("evaluate", *words))
    assert advice in str(caught.value) and "\n" not in str(caught.value)
    groups = {word.partition("=")[0] for word in mended}
    check_compatibility(
        composed("evaluate", *(word for word in words if word.partition("=")[0] not in groups), *mended)
    )


METHODS = ("spire", "supir", "diff_restorer", "instantir", "dra", "controlnet", "regression")


@pytest.mark.parametrize("backbone", ["tiny_sd", "tiny_sdxl", "tiny_sd3"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_works_with_every_prior(method, backbone) -> None:
    check_compatibility(composed("train", f"method={method}", f"backbone={backbone}"))


def test_the_command_line_refuses_in_one_line_without_torch(tmp_path) -> None:
    probe = (
        "import sys; from restore_lab.cli.main import main\n"
        "sys.argv = ['restore-lab', 'train', 'backbone=tiny_sd3', 'decoder=consistency']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    print('code', stop.code, 'torch' in sys.modules)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=300
    )
    assert "code 2 False" in ran.stdout, ran.stderr
    (line,) = ran.stderr.strip().splitlines()
    assert "decoder=consistency decodes SD 1.x's latents" in line and "use decoder=codec" in line
