"""Vectors of an encoder with the center taken out: a variant that goes through the same audit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.statistics.cross_validation import patient_folds
from pathfm_kedro.statistics.harmonisation import AffineMap, fit_maps
from pathfm_kedro.statistics.mosaic import PATCH_TOKENS, PATCH_TOKENS_LOSS
from pathfm_kedro.statistics.tables import center_digest

#: Patients go into so many groups; each is mapped by what the others show.
FOLDS = 5
_SEED = 0
#: Raised with any change of what is computed from the same vectors.
_REVISION = "1"


class Shards(Protocol):
    """Tensors of a cohort, slide by slide."""

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides with a whole shard."""
        ...

    def load_slide(self, slide_id: str, name: str = "embedding") -> NDArray[Any]:
        """One tensor of one slide."""
        ...

    def tensor_names(self, slide_id: str) -> tuple[str, ...]:
        """Names of a slide's tensors, sorted."""
        ...

    def slide_header(self, slide_id: str) -> Mapping[str, str]:
        """What a slide's shard says of itself."""
        ...


@dataclass(frozen=True)
class HarmoniseSlide:
    """The tensors of one slide with its center taken out.

    Attributes
    ----------
    slide_id
        Which slide.
    source
        The base encoder's tensors.
    apply
        The map of the slide's center, fitted without the slide's patient; None where there is none.
    method
        The mitigation.
    center
        Digest of the slide's patient and center.
    """

    slide_id: str
    source: Shards
    apply: AffineMap | None
    method: str
    center: str

    def header(self) -> dict[str, str]:
        """What the base's shard depends on, the map, and whose center it takes out."""
        header = dict(self.source.slide_header(self.slide_id))
        header.pop(PATCH_TOKENS, None)
        digest = "" if self.apply is None else self.apply.digest()
        header["encoder"] = f"{header.get('encoder', '')}+{self.method}-{_REVISION}"
        header["map"] = json.dumps([self.method, _REVISION, digest])
        header["center"] = self.center
        return header

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """Every floating tensor mapped along its last axis; counts and codes stay as they are.

        Patch tokens are left out: the map is one of tiles' vectors.

        Raises
        ------
        ValueError
            If no other patient of the slide's center was embedded.
        """
        if self.apply is None:
            raise ValueError(
                f"{self.method} of a patient needs other patients of the same center, and there is "
                "none: add patients or leave the variant out of this cohort"
            )
        tensors = {
            name: self.source.load_slide(self.slide_id, name)
            for name in self.source.tensor_names(self.slide_id)
            if name not in (PATCH_TOKENS, PATCH_TOKENS_LOSS)
        }
        return {
            name: self.apply(tensor) if np.issubdtype(tensor.dtype, np.floating) else tensor
            for name, tensor in tensors.items()
        }


def plan_harmonised(
    slides: pl.DataFrame,
    embeddings: Shards,
    tensors: Shards,
    encoder: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
) -> ShardPlan:
    """One job per slide of the base encoder.

    Parameters
    ----------
    slides
        slide_id, patient_id and center.
    embeddings
        The base encoder's vectors of the cohort: what the maps are fitted on.
    tensors
        What is mapped: the same vectors, or the base's vectors of views.
    encoder
        The variant's entry of ``encoders``; ``mitigation`` is the method.
    engine
        Where jobs run.
    name
        The variant's name.
    """
    spec = EncoderSpec.from_parameters(name, encoder)
    maps = center_maps(slides, embeddings, str(spec.mitigation))
    named = slides.select("slide_id", "patient_id", "center").iter_rows()
    centers = {slide: center_digest(*who) for slide, *who in named}
    jobs = [
        HarmoniseSlide(s, tensors, maps.get(s), str(spec.mitigation), centers.get(s, ""))
        for s in tensors.slide_ids
    ]
    return ShardPlan(jobs, EngineSettings(**engine), f"taking the center out for {name}")


def center_maps(slides: pl.DataFrame, embeddings: Shards, method: str) -> dict[str, AffineMap]:
    """The map of every slide of these patients, fitted on the patients of the other folds.

    Slides that show tissue again have no vectors among `embeddings`, and take the map of their center
    that their patient had no part in.
    """
    named = slides.with_columns(pl.col("patient_id", "center").cast(pl.String()).fill_null(""))
    listed = list(named.select("slide_id", "patient_id", "center").iter_rows())
    own = named.filter(pl.col("slide_id").is_in(list(embeddings.slide_ids)))
    patients, centers = own["patient_id"], own["center"]
    folds = patient_folds(patients.to_numpy(), FOLDS, _SEED, centers.to_numpy())
    fold_of = dict(zip(patients, folds.tolist(), strict=True))
    rows = list(zip(own["slide_id"], patients, centers, strict=True))
    # A center that is missing from one fold's fit would move the common middle of that fold alone.
    folds_of: dict[str, set[int]] = {}
    for _, patient, center in rows:
        folds_of.setdefault(center, set()).add(fold_of[patient])
    rows = [row for row in rows if len(folds_of[row[2]]) > 1]
    found: dict[str, AffineMap] = {}
    for fold in sorted(set(fold_of.values())):
        others = [row for row in rows if fold_of[row[1]] != fold]
        if not others:
            continue
        fitted = fit_maps(_vectors(others, embeddings), method)
        held_out = (row for row in listed if fold_of.get(row[1]) == fold)
        found |= {slide: fitted[center] for slide, _, center in held_out if center in fitted}
    return found


def _vectors(
    rows: list[tuple[str, str, str]], embeddings: Shards
) -> Iterator[tuple[str, NDArray[Any]]]:
    return ((center, embeddings.load_slide(slide)) for slide, _, center in rows)
