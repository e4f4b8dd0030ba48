"""Files of conf/: each text is parsed once, and merged without OmegaConf where no value names another.

Kedro parses every file anew each time that it asks for a configuration, by a parser in Python, and
OmegaConf makes an object of each of the thousands of values of conf/base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from kedro.config import OmegaConfigLoader
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader


class PlainConfigLoader(OmegaConfigLoader):
    """Kedro's loader with the same result, sooner; it falls back on Kedro's way where that differs."""

    def _read_dir_configs(
        self,
        conf_path: str,
        patterns: Iterable[str],
        key: str,
        processed_files: set[Path],
        read_environment_variables: bool | None = False,
    ) -> Any:
        """What is written in each file of a folder; not to be changed."""
        contents = None if read_environment_variables else self._contents(conf_path, patterns)
        if contents is None:
            return super()._read_dir_configs(
                conf_path, patterns, key, processed_files, read_environment_variables
            )
        processed_files.update(contents)
        self._check_duplicates(key, contents)
        return contents

    def _contents(self, folder: str, patterns: Iterable[str]) -> dict[Path, Any] | None:
        """Mappings that the files hold; None where Kedro has words for what is wrong with one."""
        if not self._fs.isdir(Path(folder).as_posix()):
            return None
        found = {
            Path(file)
            for pattern in patterns
            for file in self._fs.glob(Path(folder, pattern).as_posix())
            if not (self.ignore_hidden and self._is_hidden(file))
        }
        files = sorted(path for path in found if self._is_valid_config_path(path))
        try:
            contents = {path: _parsed(self._fs.cat_file(path.as_posix())) for path in files}
        except yaml.YAMLError:
            return None
        return contents if all(isinstance(c, dict) for c in contents.values()) else None

    def _check_duplicates(self, key: str, config_per_file: dict[Path, Any]) -> None:
        """Refuse what two files of a folder set; of parameters, at any depth."""
        if key == "parameters":
            config_per_file = {
                path: dict.fromkeys(self._get_all_keys(as_written(content)))
                for path, content in config_per_file.items()
            }
        super()._check_duplicates("", config_per_file)

    def _merge_and_resolve(self, key: str, config_per_file: Mapping[Path, Any]) -> dict[str, Any]:
        """Files of a folder as one; of parameters with those of the command line."""
        contents = list(config_per_file.values())
        if contents and key == "parameters":
            contents.append(dict(self.runtime_params or {}))
        if not all(map(is_plain, contents)):
            made = {path: OmegaConf.create(content) for path, content in config_per_file.items()}
            found: dict[str, Any] = super()._merge_and_resolve(key, made)
            return found
        merged = merge(*contents)
        if key != "parameters":
            merged = {name: value for name, value in merged.items() if not name.startswith("_")}
        return merged

    @staticmethod
    def _soft_merge(
        config: dict[str, Any], env_config: dict[str, Any], env_path: str | None = None
    ) -> Any:
        """The cohort's configuration over that of conf/base, key by key."""
        if is_plain(config) and is_plain(env_config):
            return merge(config, env_config)
        return OmegaConfigLoader._soft_merge(config, env_config, env_path)


def is_plain(value: Any) -> bool:
    """Whether a value is what it says: no reference to another, nothing that OmegaConf reads as more.

    Examples
    --------
    >>> is_plain({"pixels": 224, "criteria": [{"below": 0.1}]})
    True
    >>> is_plain({"root": "${globals:root}"}), is_plain({"mpp": "???"})
    (False, False)
    """
    if type(value) is dict:
        return all(isinstance(key, str | int | float) and is_plain(of) for key, of in value.items())
    if type(value) is list:
        return all(map(is_plain, value))
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, bool | int | float)


def merge(*contents: Mapping[Any, Any]) -> dict[Any, Any]:
    """Mappings as one: a later one wins, key by key; nothing of them is shared with the result.

    Examples
    --------
    >>> merge({"tile": {"pixels": 224, "mpp": 0.5}}, {"tile": {"mpp": 0.25}, "seed": 0})
    {'tile': {'pixels': 224, 'mpp': 0.25}, 'seed': 0}
    """
    merged: dict[Any, Any] = {}
    for content in contents:
        for key, value in content.items():
            before = merged.get(key)
            if isinstance(value, Mapping) and isinstance(before, Mapping):
                merged[key] = merge(before, value)
            else:
                merged[key] = _copied(value)
    return merged


def as_written(content: Any) -> Any:
    """Plain mappings and lists, references as they stand."""
    return (
        OmegaConf.to_container(content, resolve=False) if OmegaConf.is_config(content) else content
    )


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(of) for key, of in value.items()}
    return [_copied(of) for of in value] if isinstance(value, list) else value


@lru_cache(maxsize=512)
def _parsed(text: bytes) -> Any:
    """What a file says; an empty one has no keys."""
    content = yaml.load(text, Loader=_yaml_loader())  # noqa: S506  (a safe loader)
    return {} if content is None else content


@cache
def _yaml_loader() -> Any:
    """OmegaConf's loader, a safe one that refuses a key given twice, with libyaml's parser."""
    safe = get_yaml_loader()
    if not yaml.__with_libyaml__:
        return safe

    class Loader(yaml.cyaml.CParser, safe):  # type: ignore[misc, valid-type]
        def __init__(self, stream: bytes) -> None:
            yaml.cyaml.CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    return Loader
