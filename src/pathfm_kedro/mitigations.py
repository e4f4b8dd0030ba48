"""Which encoders of a cohort are another one with its confounder taken out, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathfm_kedro.cohorts import harmonised_bases
from pathfm_kedro.variants import RANDOM_WEIGHTS, ROBUSTIFIED_FROM

#: How such an encoder is called beside what is done to pixels and vectors.
ROBUSTIFIED = "robustified"
#: Keys that say how an encoder is run, or what stands beside it, and not which encoder it is.
_BESIDE = frozenset(
    {"mitigation", "batch_size", "runtime", "precision", "device", RANDOM_WEIGHTS, "tile"}
)


def mitigated_from(encoders: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Of each variant the encoder that it is held against, and what was done.

    A variant is a harmonised entry, an entry with a mitigation of pixels beside the same entry without,
    or one that says ``robustified_from``.

    Parameters
    ----------
    encoders
        Entries of the cohort by name.

    Raises
    ------
    ValueError
        If ``robustified_from`` names no other encoder of the cohort, or a variant.

    Examples
    --------
    >>> cohort = {"phikon": {"model": "timm:x"}, "averaged": {"model": "timm:x", "mitigation":
    ...     "rotation_average"}, "phaet": {"model": "timm:y", "robustified_from": "phikon"}}
    >>> mitigated_from(cohort)
    {'averaged': ('phikon', 'rotation_average'), 'phaet': ('phikon', 'robustified')}
    """
    bases = harmonised_bases(encoders)
    found = {name: (base, str(encoders[name].get("mitigation"))) for name, base in bases.items()}
    plain = {
        name: entry
        for name, entry in encoders.items()
        if name not in bases and not entry.get("mitigation")
    }
    for name, entry in encoders.items():
        if name in bases or not entry.get("mitigation"):
            continue
        same = [other for other in plain if _network(plain[other]) == _network(entry)]
        if same:
            found[name] = (same[0], str(entry["mitigation"]))
    for name, entry in encoders.items():
        base = entry.get(ROBUSTIFIED_FROM)
        if base is None:
            continue
        if base not in plain or base == name or ROBUSTIFIED_FROM in plain[base]:
            known = sorted(set(plain) - {name})
            raise ValueError(
                f"encoders.{name}.{ROBUSTIFIED_FROM} is {base!r}: name the encoder of the cohort that "
                f"it was made from, which is no variant itself; there are {known}"
            )
        if name in found:
            raise ValueError(
                f"encoders.{name} is a variant of '{found[name][0]}' already: leave out "
                f"{ROBUSTIFIED_FROM}, and give it in an entry of its own"
            )
        found[name] = (str(base), ROBUSTIFIED)
    return found


def _network(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _BESIDE}
