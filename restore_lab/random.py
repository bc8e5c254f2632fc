"""Seeds and generators: every random decision is a function of its key parts, the same in every process.

`mix(seed, epoch, index)` is a sample's seed; `generator(sample_seed, "noise")` draws one of its decisions. Nothing in
the package draws from a global generator, so results do not depend on batch, workers or rank.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch


def mix(*parts: int | str) -> int:
    """A stable 63-bit hash of the parts: ("a", 1) and ("a1",) differ; independent of Python's hash seed."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `mix(*parts)`."""
    import torch

    return torch.Generator().manual_seed(mix(*parts))


def rng(*parts: int | str) -> np.random.Generator:
    """A numpy generator seeded with `mix(*parts)`."""
    import numpy as np

    return np.random.Generator(np.random.SFC64(mix(*parts)))


def noise_like(like_BCHW: torch.Tensor, seeds: Sequence[int], purpose: str) -> torch.Tensor:
    """Standard normal noise in a batch's shape, image i seeded by (seeds[i], purpose); drawn on the CPU in float32."""
    import torch

    rows = [torch.randn(like_BCHW.shape[1:], generator=generator(seed, purpose)) for seed in seeds]
    return torch.stack(rows).to(device=like_BCHW.device, dtype=like_BCHW.dtype)


def uniform(seeds: Sequence[int], purpose: str) -> torch.Tensor:
    """One uniform number in [0, 1) per sample, seeded by (seed, purpose); float32 on the CPU."""
    import torch

    return torch.stack([torch.rand((), generator=generator(seed, purpose)) for seed in seeds])
