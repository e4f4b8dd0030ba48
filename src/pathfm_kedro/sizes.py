"""The size of an audit: what ``audit.size`` changes of conf/base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathfm_kedro.conf_files import PlainConfigLoader, as_written, merge

#: Parameters that say which size an audit has, and what sizes change.
_OF_SIZE = ("audit", "sizes")


class SizedConfigLoader(PlainConfigLoader):
    """Kedro's loader; the parameters of conf/base are those of the audit's size.

    ``--params`` go before the cohort's folder, that before the size, and the size before conf/base.
    ``audit.size`` itself is read in the same order.
    """

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Configuration of one kind; of parameters without the table of sizes, which no step reads."""
        if key != "parameters" or key in self.data:
            return super().__getitem__(key)
        self._register_runtime_params_resolver()
        base, own, base_path, own_path, files = self._read_raw_config(key)
        given = [*base.values(), *own.values(), self.runtime_params or {}]
        known = merge(
            *({k: one[k] for k in _OF_SIZE if k in one} for one in map(as_written, given))
        )
        sized: dict[Path, Any] = dict(base)
        if "sizes" in known:
            sized[Path("size")] = dict(chosen_size(known))
        found = self._resolve_from_raw_config(key, sized, own, base_path, own_path, files)
        found.pop("sizes", None)
        return found


def chosen_size(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the audit's size changes.

    Raises
    ------
    ValueError
        If there is no such size, naming those there are.

    Examples
    --------
    >>> sizes = {"quick": {"tile_pool": {"max_tiles": 72}}, "standard": {}}
    >>> chosen_size({"audit": {"size": "quick"}, "sizes": sizes})
    {'tile_pool': {'max_tiles': 72}}
    """
    sizes, size = parameters["sizes"], (parameters.get("audit") or {}).get("size")
    if size not in sizes:
        raise ValueError(
            f"audit.size is {size!r}: give one of {', '.join(sizes)}; what each changes stands in "
            "conf/base/parameters_sizes.yml"
        )
    found: Mapping[str, Any] = sizes[size] or {}
    return found
