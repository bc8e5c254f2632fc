"""A typed number that nothing in the training reads is refused in one line."""

from __future__ import annotations

import pytest
from hydra.core.hydra_config import HydraConfig

from restore_lab.config.checks import check_config
from tests.helpers.configs import composed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("method=dra", "adaptor=spire", "lora_rank=4"), "lora_rank=4: nothing in this composition reads 'lora_rank'"),
        (("+lora_rnk=4", "method=dra"), "lora_rnk=4: nothing in this composition reads 'lora_rnk'; did you mean"),
        (("method=supir", "stages.encoder=null", "encoder_steps=3"), "encoder_steps=3: nothing in this composition"),
    ],
)
def test_an_unread_number_is_refused(words, said) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_config(composed("train", *words), verb="train")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_read_number_passes_and_so_do_a_tables_overrides() -> None:
    read = ("method=dra", "lora_rank=4", "encoder_steps=3", "sampler.steps=3", "adaptor/lora=self_attention")
    common = ("max_steps=2", "esrgan_scale=4", "+makes.x=[caption]", "callbacks=[]")
    check_config(composed("train", *read, *common), verb="train")
    assert "method" in HydraConfig.get().runtime.choices
    check_config(composed("evaluate", "method=dra", "adaptor=spire", "lora_rank=4"), verb="evaluate")
