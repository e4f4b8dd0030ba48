"""Published encoders by name: what an entry with ``preset`` stands for, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("presets.yml")
#: Kinds of models whose published file of weights is known by its digest; another kind is an
#: export, or other weights.
_AS_PUBLISHED = ("hf-hub:", "local-dir:", "timm:", "transformers:", "open_clip:")
#: Of the entry, what says which weights and how the published network is built.
_OF_THE_WEIGHTS = ("checkpoint", "weights", "sha256", "model_kwargs")


@dataclass(frozen=True)
class Preset:
    """A published encoder; the head of ``presets.yml`` says what each key means.

    What no source states is None or empty.
    """

    name: str
    entry: Mapping[str, Any] = field(default_factory=dict)
    download: str | None = None
    needs: str | None = None
    slide_level: bool = False
    hub: str | None = None
    revision: str | None = None
    weights: str | None = None
    sha256: str | None = None
    dimension: int | None = None
    parameters: str | None = None
    flops: str | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)
    tile_encoder: str | None = None
    tile: Mapping[str, Any] = field(default_factory=dict)
    precision: str | None = None
    licence: str | None = None
    commercial: bool | None = None
    commercial_note: str | None = None
    gated: bool | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    conflicts: tuple[str, ...] = ()
    note: str | None = None
    doi: str | None = None
    sources: tuple[str, ...] = ()

    @property
    def repository(self) -> str:
        """``owner/model`` on the hub; empty where it lies elsewhere.

        Examples
        --------
        >>> read_presets()["uni2_h"].repository
        'MahmoodLab/UNI2-h'
        """
        if self.hub:
            return self.hub
        kind, _, name = self._source.partition(":")
        if kind in ("timm", "") or f"{kind}:" not in _AS_PUBLISHED:
            return ""
        return "/".join(name.partition("@")[0].split("/")[:2])

    @property
    def pinned(self) -> str:
        """Revision on the hub that is loaded; empty where none is known.

        Examples
        --------
        >>> read_presets()["gpfm"].pinned[:7]
        'c2e0c6c'
        """
        return self.revision or self._source.partition("@")[2].partition("/")[0]

    @property
    def file(self) -> str:
        """Name of the file of weights; empty where none is stated.

        Examples
        --------
        >>> read_presets()["gpfm"].file
        'GPFM.pth'
        """
        named = self.weights or self.entry.get("weights") or self.entry.get("checkpoint")
        return str(named or "").rpartition("/")[2]

    @property
    def _source(self) -> str:
        return str(self.entry.get("checkpoint") or self.entry.get("model") or "")

    @property
    def requirement(self) -> str:
        """What a person has to do or bring before it can be used; empty where nothing."""
        needs = []
        if not self.entry:
            vectors = "slide vectors" if self.slide_level else "features"
            needs.append(f"bring its {vectors}: it needs {self.needs}")
        if self.download:
            needs.append("checkpoint: the file, downloaded")
        if self.gated and self.entry:
            needs.append("its terms accepted, hf auth login")
        if str(self.entry.get("model")).startswith(("transformers:", "open_clip:")):
            needs.append('pip install "pathfm-kedro[models]"')
        return "; ".join(needs)


@lru_cache(maxsize=1)
def read_presets() -> Mapping[str, Preset]:
    """All presets by name, in the order of the file.

    Raises
    ------
    ValueError
        If an entry of the file has a key that nothing reads.
    """
    import yaml

    # The C reader takes a twentieth of a second, the other half a second in every command and worker.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    listed = yaml.load(_FILE.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    known = {one.name for one in fields(Preset)}
    presets = {}
    for name, facts in listed.items():
        unknown = sorted(set(facts) - known)
        if unknown:
            raise ValueError(f"{_FILE.name}: {name} has unknown keys {unknown}")
        lists = {key: tuple(facts.get(key) or ()) for key in ("conflicts", "sources")}
        presets[name] = Preset(name, **{**facts, **lists})
    return presets


def find_preset(name: Any) -> Preset:
    """The preset of a name.

    Raises
    ------
    ValueError
        If there is none; it names the closest.

    Examples
    --------
    >>> find_preset("uni2_h").dimension
    1536
    """
    presets = read_presets()
    if isinstance(name, str) and name in presets:
        return presets[name]
    plain = {"".join(filter(str.isalnum, known)): known for known in presets}
    asked = "".join(filter(str.isalnum, str(name).lower()))
    close = [plain[found] for found in get_close_matches(asked, plain, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else "none is close"
    raise ValueError(f"there is no preset '{name}': {hint} 'kedro encoders list' shows all")


def expanded(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of ``encoders`` with what its ``preset`` stands for; its own keys win.

    Arguments in ``model_kwargs`` are merged one by one. A ``model`` that is an export takes nothing
    over that is about the published file, and features take nothing at all.

    Parameters
    ----------
    name
        The encoder.
    parameters
        The entry; without ``preset`` it comes back as it is.

    Raises
    ------
    ValueError
        If there is no such preset, or it cannot be loaded by name alone; it names the mend.

    Examples
    --------
    >>> expanded("mine", {"preset": "lunit_dino8", "batch_size": 4})["batch_size"]
    4
    """
    own = dict(parameters)
    if "preset" not in own:
        return own
    where = f"encoders.{name}"
    try:
        preset = find_preset(own.pop("preset"))
    except ValueError as error:
        raise ValueError(f"{where}.preset: {error}") from None
    taken = dict(preset.entry)
    model = own.get("model")
    if model is None:
        _refuse_unreachable(preset, own, where)
    elif str(model).startswith("features:"):
        return own
    else:
        published = str(model).startswith(_AS_PUBLISHED)
        for key in _OF_THE_WEIGHTS:
            if key == "checkpoint" or not published:
                taken.pop(key, None)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(taken.get(key), Mapping)
        taken[key] = {**taken[key], **value} if both else value
    if str(taken.get("model")).startswith("timm:"):
        # Of a checkpoint the file itself is named; without one there is nothing to compare.
        taken.pop("weights", None)
        if not taken.get("checkpoint"):
            taken.pop("sha256", None)
    return taken


def published_dimension(entry: Mapping[str, Any]) -> int | None:
    """Of the vectors of an entry whose pooling is its preset's; None where nobody says.

    Examples
    --------
    >>> published_dimension({"preset": "uni2_h"}), published_dimension({"model": "timm:resnet18"})
    (1536, None)
    """
    if "preset" not in entry:
        return None
    preset = find_preset(entry["preset"])
    published = preset.entry.get("pooling", "default")
    return preset.dimension if entry.get("pooling", published) == published else None


def refuse_other_dimension(name: str, entry: Mapping[str, Any], found: int) -> None:
    """Check that vectors are as long as those of the preset that the entry names.

    Parameters
    ----------
    name, entry
        Of the encoder.
    found
        Numbers of a vector.

    Raises
    ------
    ValueError
        If they are not: the files or weights are another encoder's, or pooled in another way.

    Examples
    --------
    >>> refuse_other_dimension("uni", {"preset": "uni"}, 384)
    Traceback (most recent call last):
    ...
    ValueError: encoders.uni: vectors have 384 numbers, and 1024 are published of the preset 'uni': ...
    """
    published = published_dimension(entry)
    if published not in (None, found):
        raise ValueError(
            f"encoders.{name}: vectors have {found} numbers, and {published} are published of the "
            f"preset '{entry['preset']}': name the weights or files of that encoder, or leave out "
            f"encoders.{name}.preset"
        )


def _refuse_unreachable(preset: Preset, own: Mapping[str, Any], where: str) -> None:
    if not preset.entry:
        made = "slide vectors" if preset.slide_level else "features"
        raise ValueError(
            f"{where}.preset is '{preset.name}', which nothing here loads, since it needs "
            f"{preset.needs}: make its {made} elsewhere and give {where}.model: features:<folder>"
        )
    loads = own.get("pretrained", True)
    if preset.download and not own.get("checkpoint") and loads:
        raise ValueError(
            f"{where}.preset is '{preset.name}', whose weights lie on no hub: download "
            f"{preset.download} and give {where}.checkpoint the path of the file"
        )


def differs_from_training(preset: Preset, pixels: int, mpp: float) -> str:
    """How a cohort's tiles differ from those that an encoder was trained on; empty where they do not.

    Parameters
    ----------
    preset
        The encoder.
    pixels
        Side of the cohort's tiles.
    mpp
        Their micrometres per pixel.

    Examples
    --------
    >>> differs_from_training(find_preset("uni"), 224, 0.5)
    ''
    >>> print(differs_from_training(find_preset("conch_v1_5"), 224, 0.5))
    trained on tiles of 512 px at 0.5 µm per px (card: 20x), and the cohort's are 224 px at 0.5
    """
    side, scales = preset.tile.get("pixels"), preset.tile.get("mpp") or ()
    same_scale = any(abs(mpp / scale - 1) <= _SAME_SCALE for scale in scales)
    if not scales or (same_scale and pixels == side):
        return ""
    stated = " or ".join(f"{scale:g}" for scale in scales)
    return (
        f"trained on tiles of {side} px at {stated} µm per px ({preset.tile['stated']}), and the "
        f"cohort's are {pixels} px at {mpp:g}"
    )


#: Scanners that are said to be of one magnification differ by less.
_SAME_SCALE = 0.1
