"""Long runs leak nothing: `tests.helpers.soak` in a few rounds, and two hundred starts of the data workers."""

from __future__ import annotations

import pytest

from tests.helpers.soak import WARM, cycles, growth, rounds, watched

pytestmark = pytest.mark.slow


def flat(grown: dict[str, float], *, memory: float) -> bool:
    return grown.pop("memory") <= memory and set(grown.values()) == {0}


def test_repeated_training_and_restoring_leaks_nothing(toy_folder, tmp_path) -> None:
    found = watched(rounds(tmp_path, toy_folder), lambda count, _: count == WARM + 16)
    assert flat(growth(found), memory=5.0), found


def test_two_hundred_starts_and_stops_of_the_workers(toy_folder) -> None:
    found = watched(cycles(toy_folder), lambda count, _: count == 200)
    assert flat(growth(found), memory=2.0), found


def test_a_leak_is_found() -> None:
    kept: list[object] = []

    def leaking():
        while True:
            kept.append(open("/dev/null"))  # noqa: SIM115
            yield

    assert not flat(growth(watched(leaking(), lambda count, _: count == WARM + 10)), memory=5.0)
    for file in kept:
        file.close()  # type: ignore[attr-defined]
