"""The shipped costs, from which a plan estimates its time on a machine where nothing ran yet."""

from __future__ import annotations

from restore_lab.config.conf_dir import conf_dir
from restore_lab.launch.cost import shipped_facts

GROUPS = ("method", "backbone", "adaptor", "data")  # that `like_of` reads, in this order


def test_every_shipped_cost_names_options_that_exist() -> None:
    jobs = [fact["like"].split() for fact in shipped_facts()]
    composed = [words[1:5] for words in jobs if len(words) == 7]  # of a composition: its kind, parts, crop and batch
    assert len(composed) > 40
    for options in composed:
        for group, option in zip(GROUPS, options, strict=True):
            assert (conf_dir() / group / f"{option}.yaml").is_file(), f"{group}={option}"
