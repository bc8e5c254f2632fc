"""What an error for want of memory looks like."""

from __future__ import annotations


def out_of_memory(error: BaseException) -> bool:
    """Whether a device (torch.OutOfMemoryError) or the host ("can't allocate memory") had none left."""
    said = str(error).lower()
    return (
        type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in said
        or "out of memory" in said
        or isinstance(error, MemoryError)
    )


def let_go() -> None:
    """Hand what is no longer used back to the GPU, if there is one."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
