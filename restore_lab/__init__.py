"""Image restoration with diffusion priors: `from restore_lab import Restorer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restore_lab.inference.restorer import Restorer

__all__ = ["Restorer"]


def __getattr__(name: str) -> Any:
    """`Restorer` on demand: it imports torch, and most of the package should not."""
    if name == "Restorer":
        from restore_lab.inference.restorer import Restorer

        return Restorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
