"""Out-of-memory errors, and freeing GPU memory."""

from __future__ import annotations


def out_of_memory(error: BaseException) -> bool:
    """Whether a device (torch.OutOfMemoryError) or the host ("can't allocate memory") ran out of memory."""
    said = str(error).lower()
    return (
        type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in said
        or "out of memory" in said
        or isinstance(error, MemoryError)
    )


def empty_cache() -> None:
    """Collect garbage and release the GPU's cached memory, if there is a GPU."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
