"""The phantom cohort: slides drawn from a seed, with known truth, read like any scanner's file.

A calibration target, not a claim about tissue. Classes differ in morphology only, centers in stain
and scanner only, patients a little in both.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.slides.phantom_cues import CUES, with_cues
from pathfm_kedro.slides.phantom_morphology import (
    as_description,
    assign_patterns,
    patient_morphology,
    truth_vector,
)
from pathfm_kedro.slides.phantom_repeats import (
    CHANGES,
    Placement,
    moved,
    placement_of,
    towards,
)
from pathfm_kedro.slides.phantom_stain import center_profile, patient_stain, render, slide_stain
from pathfm_kedro.slides.phantom_tissue import draw_tissue

#: Names become part of file names.
_NAME = re.compile(r"[A-Za-z0-9_]+")
#: Side of the TIFF's tiles, and the pyramid's end: one tile shows the whole slide.
_TILE_PX = 256
#: Below 256 px there is no tissue to tile; above 16384 a slide no longer fits in memory with ease.
_SIZE_RANGE = (256, 16384)
#: Coarser than 2 um a nucleus is three pixels; finer than 0.1 no scanner goes.
_MPP_RANGE = (0.1, 2.0)


def _four_classes() -> dict[str, str]:
    return {
        "kidney_clear": "kidney",
        "kidney_papillary": "kidney",
        "lung_adeno": "lung",
        "lung_squamous": "lung",
    }


@dataclass(frozen=True)
class PhantomDesign:
    """What to draw.

    Attributes
    ----------
    seed
        Every pixel follows from it and the slide's id.
    labels
        Label to organ; at most six labels.
    centers
        Names of the centers, each with every label.
    patients_per_cell
        Patients per label and center.
    slides_per_patient
        Slides per patient.
    size_px, mpp
        Side of a slide in level-0 pixels, micrometres per pixel.
    site_bias
        0: centers are identical; 1: colour predicts the center.
    repeat_patients
        Patients whose first slide is drawn once more for each of `repeat_changes`; taken in turn from
        every label and center.
    repeat_changes
        What of another center each such slide takes: ``scanner``, ``stain``, ``both``.
    repeat_dose
        0: the same pixels again; 1: all of the other center's look, moved on the glass.
    cues
        Doses, 0 to 1, of what single checks are calibrated by
        (:data:`~pathfm_kedro.slides.phantom_cues.CUES`); none is drawn that is not named.

    Raises
    ------
    ValueError
        Names the parameter, its value and the mend.

    Examples
    --------
    >>> design = PhantomDesign(centers=("north", "south"), patients_per_cell=2)
    >>> phantom_manifest(design).height
    16
    """

    seed: int = 7
    labels: Mapping[str, str] = field(default_factory=_four_classes)
    centers: Sequence[str] = ("north", "south", "west")
    patients_per_cell: int = 4
    slides_per_patient: int = 1
    size_px: int = 1536
    mpp: float = 0.5
    site_bias: float = 0.5
    repeat_patients: int = 0
    repeat_changes: Sequence[str] = ("scanner", "stain", "both")
    repeat_dose: float = 1.0
    cues: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.labels, Mapping) or not self.labels:
            raise ValueError(
                f"labels: {self.labels!r} must map each label to its organ, for instance "
                "{kidney_clear: kidney}"
            )
        if isinstance(self.centers, str) or not isinstance(self.centers, Sequence):
            raise ValueError(f"centers: {self.centers!r} must be a list of names")
        _check_names("labels", list(self.labels))
        _check_names("labels (organ)", sorted(set(self.labels.values())))
        _check_names("centers", list(self.centers))
        assign_patterns(self.labels)
        _check_integer("seed", self.seed, 0, 2**63 - 1)
        _check_integer("patients_per_cell", self.patients_per_cell, 1, 999)
        _check_integer("slides_per_patient", self.slides_per_patient, 1, 99)
        _check_integer("size_px", self.size_px, *_SIZE_RANGE)
        _check_number("mpp", self.mpp, *_MPP_RANGE)
        _check_number("site_bias", self.site_bias, 0.0, 1.0)
        n_patients = len(self.labels) * len(self.centers) * self.patients_per_cell
        _check_integer("repeat_patients", self.repeat_patients, 0, n_patients)
        _check_changes(self.repeat_changes)
        _check_number("repeat_dose", self.repeat_dose, 0.0, 1.0)
        _check_cues(self.cues)
        object.__setattr__(self, "cues", dict(self.cues))
        object.__setattr__(self, "labels", dict(self.labels))
        object.__setattr__(self, "centers", tuple(self.centers))
        object.__setattr__(self, "repeat_changes", tuple(self.repeat_changes))

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> PhantomDesign:
        """The design from a configuration's dictionary.

        Raises
        ------
        ValueError
            If a key is unknown or a value cannot be drawn.

        Examples
        --------
        >>> PhantomDesign.from_parameters({"site_bias": 1.0}).site_bias
        1.0
        """
        known = [each.name for each in fields(cls)]
        unknown = sorted(set(parameters) - set(known))
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)}: no such parameter of the phantom; known are "
                f"{', '.join(known)}"
            )
        return cls(**parameters)


@dataclass(frozen=True)
class PhantomSlide:
    """A drawn slide.

    Attributes
    ----------
    pixels
        uint8 [h, w, 3], RGB.
    description
        What `tile_truth` needs, ready for JSON.
    jpeg_quality
        Of the center's scanner.
    mpp
        Micrometres per pixel.
    """

    pixels: NDArray[np.uint8]
    description: dict[str, Any]
    jpeg_quality: int
    mpp: float


#: Of every second patient of a label at a center.
_SEXES = ("male", "female")


def phantom_manifest(design: PhantomDesign) -> pl.DataFrame:
    """The cohort's manifest, one row per slide, sorted by slide_id.

    Returns
    -------
    polars.DataFrame
        slide_id, path (relative: ``slides/<slide_id>.tiff``), patient_id, center, organ, label,
        scanner, sex (a name that changes nothing of what is drawn); where tissue is drawn again stain
        and same_tissue_as too.
    """
    rows: list[dict[str, Any]] = [
        {
            "slide_id": f"{patient}-{slide:02d}",
            "path": f"slides/{patient}-{slide:02d}.tiff",
            "patient_id": patient,
            "center": center,
            "organ": organ,
            "label": label,
            "scanner": f"{center}-scanner",
            "sex": _SEXES[int(patient.rpartition("-")[2]) % 2],
        }
        for patient, label, organ, center in _patients(design)
        for slide in range(1, design.slides_per_patient + 1)
    ]
    if design.repeat_patients:
        rows = [row | {"stain": f"{row['center']}-stain", "same_tissue_as": ""} for row in rows]
        rows += _repeats(design, {row["slide_id"]: row for row in rows})
    return pl.DataFrame(rows).sort("slide_id")


def _repeats(
    design: PhantomDesign, rows: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Rows of slides that show the tissue of another again."""
    for slide_id in _repeated(design):
        first = rows[slide_id]
        other = _other_center(design, first["center"])[0]
        for change in design.repeat_changes:
            own = {"slide_id": f"{slide_id}-{change}", "same_tissue_as": slide_id}
            own["path"] = f"slides/{own['slide_id']}.tiff"
            taken = ("stain", "scanner") if change == "both" else (change,)
            yield {**first, **own, **{what: f"{other}-{what}" for what in taken}}


def _repeated(design: PhantomDesign) -> list[str]:
    """Slides whose tissue is drawn again: first patients of every label and center before second."""
    patients = [name for name, *_ in _patients(design)]
    in_turn = sorted(patients, key=lambda name: int(name.rpartition("-")[2]))
    return [f"{name}-01" for name in in_turn[: design.repeat_patients]]


def _other_center(design: PhantomDesign, center: str) -> tuple[str, int, int]:
    """The next center, its index, and of how many: a lone center has a neighbour of its own."""
    centers = [*design.centers, *(["other"] if len(design.centers) == 1 else [])]
    index = (centers.index(center) + 1) % len(centers)
    return centers[index], index, len(centers)


def draw_slide(design: PhantomDesign, slide_id: str) -> PhantomSlide:
    """Draw one slide of the cohort.

    Raises
    ------
    KeyError
        If the design has no such slide.

    Examples
    --------
    >>> design = PhantomDesign(size_px=256)
    >>> draw_slide(design, "lung_adeno-north-001-01").pixels.shape
    (256, 256, 3)
    """
    first, change = slide_id, ""
    if slide_id.rpartition("-")[2] in design.repeat_changes:
        first, _, change = slide_id.rpartition("-")
    patient, _, number = first.rpartition("-")
    found = {name: (label, center) for name, label, _, center in _patients(design)}
    drawn = patient in found and number in _slide_numbers(design)
    if not drawn or (change and first not in _repeated(design)):
        raise KeyError(f"slide {slide_id!r} is not in this phantom's manifest")
    label, center = found[patient]
    pattern = assign_patterns(design.labels)[label]
    morphology = patient_morphology(pattern, _rng(design, patient, "morphology"))
    seed = int(_rng(design, first, "place").integers(2**31))
    tissue = draw_tissue(
        morphology, seed, design.size_px, design.mpp, _rng(design, first, "tissue")
    )
    if design.cues:
        share = sorted(design.labels).index(label) / len(design.labels)
        tissue = with_cues(tissue, design.cues, share, design.mpp, _rng(design, first, "cues"))
    centers = list(design.centers)
    profile = center_profile(centers.index(center), len(centers), design.site_bias)
    stain = patient_stain(profile, _rng(design, patient, "stain"))
    stain = slide_stain(stain, _rng(design, first, "stain"))
    described = {**as_description(morphology, seed), "mpp": design.mpp}
    if change:
        _, index, n_centers = _other_center(design, center)
        # All of the other center, however little the cohort's centers differ.
        stain = towards(stain, center_profile(index, n_centers, 1.0), change, design.repeat_dose)
        side_um, rng = design.size_px * design.mpp, _rng(design, slide_id, "placement")
        place = Placement.drawn(side_um, design.repeat_dose, rng)
        tissue = moved(tissue, place, design.mpp)
        described["placement"] = place.as_description()
    return PhantomSlide(
        pixels=render(tissue, stain, design.mpp, _rng(design, first, "scanner")),
        description={"phantom": described},
        jpeg_quality=stain.jpeg_quality,
        mpp=design.mpp,
    )


def write_pyramid(path: Path, slide: PhantomSlide) -> None:
    """Write a slide as a tiled pyramidal TIFF that OpenSlide opens.

    Levels halve until the side is below 256 px. The same slide gives the same bytes; the file
    appears whole or not at all.
    """
    import tifffile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream, tifffile.TiffWriter(stream) as writer:
            for level, pixels in enumerate(_levels(slide.pixels)):
                per_cm = 1e4 / (slide.mpp * 2**level)
                writer.write(
                    pixels,
                    photometric="rgb",
                    tile=(_TILE_PX, _TILE_PX),
                    compression="jpeg",
                    compressionargs={"level": slide.jpeg_quality},
                    resolution=(per_cm, per_cm),
                    resolutionunit="CENTIMETER",
                    subfiletype=1 if level else 0,
                    description=None if level else json.dumps(slide.description, sort_keys=True),
                    metadata=None,
                    software=None,
                )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def tile_truth(description: Mapping[str, Any], x: int, y: int, extent: int) -> NDArray[np.float32]:
    """The drawn morphology in a window, as the control encoder `phantom_truth` sees it.

    Nearest neighbours are always of the same label; neither center nor stain nor the tile's
    rotation enters.

    Parameters
    ----------
    description
        The slide's (JSON of the TIFF's ImageDescription).
    x, y, extent
        Upper left corner and side of the window, level-0 pixels.

    Returns
    -------
    ndarray
        float32 [15], standardised over the tissues that the phantom can draw.

    Raises
    ------
    ValueError
        If the description is not of a phantom slide.
    """
    if "phantom" not in description:
        raise ValueError(
            "the slide's description holds no 'phantom' entry: the control phantom_truth knows "
            "only slides of the phantom cohort; leave it out of this cohort's encoders"
        )
    drawn = description["phantom"]
    centre = ((x + extent / 2) * drawn["mpp"], (y + extent / 2) * drawn["mpp"])
    place = placement_of(drawn)
    if place is not None:
        centre = place.before(*centre)
    return truth_vector(drawn, *centre)


def _patients(design: PhantomDesign) -> Iterator[tuple[str, str, str, str]]:
    """Patient, label, organ, center, for every patient."""
    for label, organ in design.labels.items():
        for center in design.centers:
            for patient in range(1, design.patients_per_cell + 1):
                yield f"{label}-{center}-{patient:03d}", label, organ, center


def _slide_numbers(design: PhantomDesign) -> list[str]:
    return [f"{slide:02d}" for slide in range(1, design.slides_per_patient + 1)]


def _rng(design: PhantomDesign, who: str, what: str) -> np.random.Generator:
    """A stream of its own for each thing drawn, the same on every machine and in every process."""
    digest = hashlib.sha256(f"{who}/{what}".encode()).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return np.random.default_rng(np.random.SeedSequence([design.seed, *words]))


def _levels(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    yield pixels
    while min(pixels.shape[:2]) >= _TILE_PX:
        height, width = (side // 2 for side in pixels.shape[:2])
        even = pixels[: 2 * height, : 2 * width].astype(np.uint16)
        total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
        pixels = ((total + 2) // 4).astype(np.uint8)
        yield pixels


def _check_names(parameter: str, names: list[Any]) -> None:
    if not names:
        raise ValueError(f"{parameter}: is empty; name at least one")
    bad = [name for name in names if not isinstance(name, str) or not _NAME.fullmatch(name)]
    if bad:
        raise ValueError(
            f"{parameter}: {bad[0]!r} becomes part of a file name; use letters, digits and _"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{parameter}: {names} names one twice; each must be distinct")


def _check_cues(cues: Any) -> None:
    if not isinstance(cues, Mapping) or not set(cues) <= set(CUES):
        raise ValueError(f"cues: {cues!r} must map names of {', '.join(CUES)} to doses")
    for name, dose in cues.items():
        _check_number(f"cues.{name}", dose, 0.0, 1.0)


def _check_changes(changes: Any) -> None:
    known = (
        isinstance(changes, Sequence)
        and not isinstance(changes, str)
        and set(changes) <= {*CHANGES}
    )
    if not known or not changes or len(set(changes)) < len(changes):
        raise ValueError(
            f"repeat_changes: {changes!r} must list some of {', '.join(CHANGES)}, each once"
        )


def _check_integer(parameter: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{parameter}: {value!r} must be a whole number from {low} to {high}")


def _check_number(parameter: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise ValueError(f"{parameter}: {value!r} must be a number from {low:g} to {high:g}")
