"""How the pipelines group and name their nodes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from kedro.pipeline import Node, Pipeline, node


def grouped(namespace: str, nodes: Sequence[Node | Pipeline]) -> Pipeline:
    """Nodes as one collapsible box of kedro-viz; datasets keep their names."""
    return Pipeline(nodes, namespace=namespace, prefix_datasets_with_namespace=False)


def named_partial(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
    """A partial that Kedro and kedro-viz show with the function's own name, text and types.

    Examples
    --------
    >>> def add(a: int, *, b: int) -> int:
    ...     return a + b
    >>> bound = named_partial(add, b=2)
    >>> bound(1), bound.__name__, list(inspect.signature(bound).parameters)
    (3, 'add', ['a'])
    """

    @wraps(function)
    def bound(*positional: Any, **named: Any) -> Any:
        return function(*positional, **arguments, **named)

    signature = inspect.signature(function)
    open_parameters = [p for name, p in signature.parameters.items() if name not in arguments]
    bound.__signature__ = signature.replace(parameters=open_parameters)  # type: ignore[attr-defined]
    return bound


__all__ = ["grouped", "named_partial", "node"]
