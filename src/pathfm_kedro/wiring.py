"""How the pipelines group their nodes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from kedro.pipeline import Node, Pipeline, node


def grouped(namespace: str, nodes: Sequence[Node | Pipeline]) -> Pipeline:
    """Nodes as one collapsible box of kedro-viz; datasets keep their names."""
    return Pipeline(nodes, namespace=namespace, prefix_datasets_with_namespace=False)


def named_partial(function: Any, **arguments: Any) -> Any:
    """A partial that Kedro and kedro-viz show under the function's own name."""
    bound = partial(function, **arguments)
    bound.__name__ = function.__name__  # type: ignore[attr-defined]
    bound.__doc__ = function.__doc__
    return bound


__all__ = ["grouped", "named_partial", "node"]
