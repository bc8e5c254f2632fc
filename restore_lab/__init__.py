"""Image restoration with diffusion priors: `from restore_lab import Restorer`.

Also here: the nouns that parts hand to one another, and `compose` and `build`, from a command's words to its objects.
All of them are imported when they are first used, since most of the package should not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restore_lab.config.build import build
    from restore_lab.config.compose import compose
    from restore_lab.inference.restorer import Restorer
    from restore_lab.types import Batch, Cond, Hint, Recipe, Tap

__all__ = ["Batch", "Cond", "Hint", "Recipe", "Restorer", "Tap", "build", "compose"]

PLACES = {
    "Restorer": ("inference.restorer", "Restorer"),
    "build": ("config.build", "build"),
    "compose": ("config.compose", "compose"),
    **{name: ("types", name) for name in ("Batch", "Cond", "Hint", "Recipe", "Tap")},
}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = PLACES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
