"""`check_arguments`: a constructor that checks its arguments in a direct call too, as `build` does for a config."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from restore_lab.config.kinds import Kind, Mismatch, coerce
from restore_lab.config.signatures import source_signature

Constructor = TypeVar("Constructor", bound=Callable[..., Any])


def check_arguments(constructor: Constructor) -> Constructor:
    """Decorate a class or a factory: each call checks the choices and ranges in its annotations.

    A call raises a ValueError with the argument, its value and the expected kind. Use it where nothing else would
    notice a wrong value: a share of 10 instead of 0.1, a misspelt mode. Plain types and parts are not checked, and no
    value is converted.
    """
    function: Any = constructor.__init__ if isinstance(constructor, type) else constructor
    signature = inspect.signature(function)
    target, name = f"{constructor.__module__}.{constructor.__qualname__}", constructor.__name__

    def checked(*args: Any, **kwargs: Any) -> Any:
        kinds = _constraints(target)
        for argument, value in signature.bind(*args, **kwargs).arguments.items():
            try:
                coerce(value, kinds.get(argument, Any))
            except Mismatch as error:
                raise error.at(f"{name}.{argument}", value) from error
        return function(*args, **kwargs)

    result: Any = functools.update_wrapper(checked, function)
    if isinstance(constructor, type):
        constructor.__init__, result = result, constructor
    return result


@functools.cache
def _constraints(target: str) -> Mapping[str, Kind]:
    """The annotations of a target that hold a choice or a range."""
    signature = source_signature(target)
    return {} if signature is None else {name: kind for name, kind in signature.kinds.items() if _is_constraint(kind)}


def _is_constraint(kind: Kind) -> bool:
    return typing.get_origin(kind) in (Annotated, Literal) or any(map(_is_constraint, typing.get_args(kind)))
