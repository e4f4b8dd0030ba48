"""The phantom's truth: the form of each tissue, and what separates classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.phantom_fields import Map

Pattern = Literal["clear", "gland", "papillary", "round", "spindle", "squamous"]

#: Largest relative change of a quantity between patients, and between tiles of one patient. Small
#: beside the differences between classes, so that the drawn truth never confuses two classes.
_PATIENT_SPREAD = 0.06
_TILE_SPREAD = 0.04
#: Wavelengths of the change within a slide, in micrometres: tiles differ, neighbours less so.
_TILE_WAVELENGTH_UM = (300.0, 900.0)


@dataclass(frozen=True)
class Morphology:
    """The drawn form of one tissue: everything that separates classes, nothing of colour.

    Attributes
    ----------
    pattern
        How cells are arranged.
    nuclear_um, axis_ratio, pleomorphism
        Mean nuclear diameter (micrometres), long over short axis, SD of the log diameter.
    spacing_um
        Distance between neighbouring nuclei, micrometres.
    coherence
        1: all nuclei follow the local direction; 0: none does.
    structure_um
        Size of a gland, frond or cell, micrometres.
    opening
        Share of a structure without stain: lumen, cleared cytoplasm, space between fronds.
    fibre_um, fibre
        Wavelength of the fibre texture in micrometres, and its strength in [0, 1].
    """

    pattern: Pattern
    nuclear_um: float
    axis_ratio: float
    pleomorphism: float
    spacing_um: float
    coherence: float
    structure_um: float
    opening: float
    fibre_um: float
    fibre: float


#: One form per pattern, numbers in the order of the fields above: sizes as in textbook tissue,
#: spread so that no two forms are near each other.
ARCHETYPES: dict[Pattern, Morphology] = {
    "clear": Morphology("clear", 6.0, 1.1, 0.08, 17.0, 0.1, 17.0, 0.60, 9.0, 0.2),
    "papillary": Morphology("papillary", 7.0, 1.4, 0.10, 8.0, 0.8, 46.0, 0.20, 7.0, 0.4),
    "gland": Morphology("gland", 7.5, 1.9, 0.12, 8.5, 0.9, 70.0, 0.40, 6.0, 0.7),
    "squamous": Morphology("squamous", 10.5, 1.3, 0.22, 19.0, 0.2, 19.0, 0.05, 11.0, 0.3),
    "spindle": Morphology("spindle", 8.0, 3.4, 0.15, 11.0, 0.95, 120.0, 0.02, 5.0, 1.0),
    "round": Morphology("round", 5.5, 1.05, 0.05, 8.5, 0.0, 90.0, 0.05, 8.0, 0.1),
}

#: A label that holds one of these words is drawn as that pattern; others take what is left.
_WORDS: dict[str, Pattern] = {
    "clear": "clear",
    "papil": "papillary",
    "adeno": "gland",
    "gland": "gland",
    "squam": "squamous",
    "spindle": "spindle",
    "sarcoma": "spindle",
    "lymph": "round",
    "round": "round",
}

#: Quantities that differ by factors between classes are compared as logarithms.
_LOG = ("nuclear_um", "axis_ratio", "spacing_um", "structure_um", "fibre_um")
_LINEAR = ("pleomorphism", "coherence", "opening", "fibre")
_QUANTITIES = _LOG + _LINEAR
#: What changes within a slide: the quantities that each nucleus has for itself.
_LOCAL = ("nuclear_um", "axis_ratio", "pleomorphism", "coherence")


def assign_patterns(labels: Iterable[str]) -> dict[str, Pattern]:
    """Give each label a pattern of its own, by its name where the name says one.

    Parameters
    ----------
    labels
        At most six distinct labels; the order does not matter.

    Raises
    ------
    ValueError
        If there are more labels than patterns.

    Examples
    --------
    >>> assign_patterns(["kidney_clear", "tumour"])
    {'kidney_clear': 'clear', 'tumour': 'gland'}
    """
    names = sorted(labels)
    free: list[Pattern] = sorted(get_args(Pattern))
    if len(names) > len(free):
        raise ValueError(
            f"labels: {len(names)} labels, but the phantom draws {len(free)} distinct tissues "
            f"({', '.join(free)}); name at most {len(free)}"
        )
    chosen: dict[str, Pattern] = {}
    for name in names:
        said = next((p for word, p in _WORDS.items() if word in name.lower() and p in free), None)
        if said:
            chosen[name] = said
            free.remove(said)
    for name in names:
        if name not in chosen:
            chosen[name] = free.pop(0)
    return {name: chosen[name] for name in names}


def patient_morphology(pattern: Pattern, rng: np.random.Generator) -> Morphology:
    """The class's morphology with one patient's own bounded deviation.

    Examples
    --------
    >>> one = patient_morphology("gland", np.random.default_rng(0))
    >>> one.pattern, abs(one.nuclear_um / 7.5 - 1) < 0.1
    ('gland', True)
    """
    base = ARCHETYPES[pattern]
    drawn = rng.uniform(-_PATIENT_SPREAD, _PATIENT_SPREAD, len(_QUANTITIES))
    own = {
        name: round(getattr(base, name) * math.exp(change), 6)
        for name, change in zip(_QUANTITIES, drawn, strict=True)
    }
    return replace(base, **{**own, "coherence": min(own["coherence"], 1.0)})


def as_description(morphology: Morphology, seed: int) -> dict[str, Any]:
    """What `truth_vector` needs to know of a slide, ready for JSON."""
    return {"morphology": asdict(morphology), "seed": seed}


def truth_vector(description: Mapping[str, Any], x_um: float, y_um: float) -> Map:
    """The drawn morphology at one place as a standardised vector.

    One entry per quantity, standardised over the six archetypes (logarithms for sizes), followed by
    one entry per pattern (+1 for the slide's own, -1 otherwise). The quantities hold the class's
    value, the patient's deviation and the drawn change at this place.

    Parameters
    ----------
    description
        Of one slide, from `as_description`.
    x_um, y_um
        The place on the slide, micrometres from its upper left corner.

    Returns
    -------
    ndarray
        float32 [15]: nine quantities, six patterns.
    """
    form = Morphology(**description["morphology"])
    change = local_change(description["seed"], np.float32(x_um), np.float32(y_um))
    all_forms = np.array([_quantities(other) for other in ARCHETYPES.values()])
    place = _quantities(form) + _relative_step(form, change)
    scaled = (place - all_forms.mean(axis=0)) / all_forms.std(axis=0)
    kind = np.where(np.array(list(ARCHETYPES)) == form.pattern, 1.0, -1.0)
    return np.concatenate([scaled, kind]).astype(np.float32)


def local_change(seed: int, x_um: Any, y_um: Any) -> Map:
    """Smooth relative change of four quantities over a slide, bounded by 4%.

    Parameters
    ----------
    seed
        The slide's own seed.
    x_um, y_um
        Places, micrometres, arrays of one shape [...].

    Returns
    -------
    ndarray
        float32 [4, ...]: nuclear_um, axis_ratio, pleomorphism, coherence; one plane wave each.
    """
    rng = np.random.default_rng(seed)
    shape = (len(_LOCAL),) + (1,) * np.ndim(x_um)
    heading = rng.uniform(0, 2 * np.pi, shape)
    wave = 2 * np.pi / rng.uniform(*_TILE_WAVELENGTH_UM, shape)
    phase = rng.uniform(0, 2 * np.pi, shape)
    along = np.cos(heading) * x_um + np.sin(heading) * y_um
    change: Map = (_TILE_SPREAD * np.sin(wave * along + phase)).astype(np.float32)
    return change


def _quantities(form: Morphology) -> NDArray[np.float64]:
    logs = [math.log(getattr(form, name)) for name in _LOG]
    return np.array(logs + [getattr(form, name) for name in _LINEAR])


def _relative_step(form: Morphology, change: Map) -> NDArray[np.float64]:
    """A local change, in the scale in which `_quantities` holds each quantity."""
    step = np.zeros(len(_QUANTITIES))
    for name, relative in zip(_LOCAL, change, strict=True):
        scale = 1.0 if name in _LOG else getattr(form, name)
        step[_QUANTITIES.index(name)] = relative * scale
    return step
