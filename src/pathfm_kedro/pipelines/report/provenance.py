"""Where every figure of the report comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: An absolute path, at the start of a text or behind a scheme such as ``local-dir:``.
_ABSOLUTE = re.compile(
    r"(?:(?<=^)|(?<=:)|(?<= )|(?<='))(?:[A-Za-z]:)?[/\\](?:[^/\\\s']+[/\\])*(?P<last>[^/\\\s']+)"
)
#: Parameters that say where work runs and never what it gives: they stay out of the report, so that
#: the same audit gives the same bytes on two cores and on twenty.
_WITHOUT_EFFECT = ("engine",)
#: Parameters that say how the report words what it shows.
_WORDS = "words_"


def describe_provenance(
    parameters: Mapping[str, Any],
    versions: Mapping[str, str],
    cohort: str,
    cards: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What was audited with what.

    Parameters
    ----------
    parameters
        All parameters of the run.
    versions
        Package versions.
    cohort
        The cohort's name.
    cards
        Of every encoder by name, from the embed pipeline.

    Returns
    -------
    dict
        cohort, is_phantom, site_bias, encoders, versions, parameters.
    """
    is_phantom = parameters["cohort"]["source"] == "phantom"
    shown = {
        key: value
        for key, value in parameters.items()
        if key not in _WITHOUT_EFFECT
        and not key.startswith(_WORDS)
        and (is_phantom or key != "phantom")
    }
    described = {
        "cohort": cohort,
        "is_phantom": is_phantom,
        "site_bias": float(parameters["phantom"]["site_bias"]) if is_phantom else None,
        "encoders": {name: dict(card) for name, card in sorted(cards.items())},
        "versions": dict(versions),
        "parameters": shown,
    }
    without: dict[str, Any] = _without_folders(described)
    return without


def _without_folders(value: Any) -> Any:
    """The value with every absolute path cut to its last part: it differs between machines.

    Examples
    --------
    >>> _without_folders({"model": "local-dir:/models/own", "field": "north/south"})
    {'model': 'local-dir:own', 'field': 'north/south'}
    """
    if isinstance(value, Mapping):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(entry) for entry in value]
    if isinstance(value, str):
        return _ABSOLUTE.sub(lambda found: found["last"], value)
    return value
