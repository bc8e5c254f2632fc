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
