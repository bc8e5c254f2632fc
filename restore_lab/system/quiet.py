"""Silences the model libraries while they load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Context without the libraries' progress bars and config warnings; errors are raised as usual."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    bar, levels = transformers_logging.is_progress_bar_enabled(), []
    for library in (diffusers_logging, transformers_logging):
        levels.append((library, library.get_verbosity()))
        library.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
