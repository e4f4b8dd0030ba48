"""Simulated tiles that are changed: rotation, stain and scanner, cue conflict, stain probe, attacks."""

from __future__ import annotations

from functools import cache

import numpy as np
import polars as pl
from simulated_cohorts import (
    CENTERS,
    LABELS,
    POOLED,
    Asked,
    D,
    Floats,
    Generator,
    Stored,
    asked,
    block,
    codes,
    effects_of,
    one_shard_each,
    patients_table,
    read,
    tiles_of,
)

from pathfm_kedro.pipelines.robustness.adversarial import ADVERSARIAL_SCHEMA, adversarial_figures
from pathfm_kedro.pipelines.robustness.adversarial_pool import (
    CLEAN as UNATTACKED,
)
from pathfm_kedro.pipelines.robustness.adversarial_pool import (
    SIGN_NOISE,
    Adversarial,
)
from pathfm_kedro.pipelines.robustness.appearance import (
    TRANSFERS,
    Appearance,
    appearance_figures,
    appearance_statistics,
    appearance_views,
)
from pathfm_kedro.pipelines.robustness.cue_conflict import (
    CueConflict,
    cue_conflict_figures,
    cue_conflict_statistics,
)
from pathfm_kedro.pipelines.robustness.feature_agreement import (
    FeatureAgreement,
    feature_agreement_figures,
    feature_agreement_statistics,
)
from pathfm_kedro.pipelines.robustness.rotation import (
    Rotation,
    rotation_figures,
    rotation_statistics,
    rotation_views,
)
from pathfm_kedro.pipelines.robustness.same_tissue import (
    SameTissue,
    same_tissue_figures,
    same_tissue_statistics,
)
from pathfm_kedro.pipelines.robustness.stain_probe import (
    StainProbe,
    stain_probe_figures,
    stain_probe_statistics,
)
from pathfm_kedro.pipelines.robustness.tissue_pairs import TISSUE_PAIRS_SCHEMA
from pathfm_kedro.slides.center_stains import MOMENTS, REFERENCE_SCHEMA, target_centers

#: Places of a slide that are seen twice.
_PLACES = 16


def pooled_tiles(patients: int) -> pl.DataFrame:
    """The pool whose views are embedded."""
    each = POOLED[patients]
    slides = patients_table(patients)
    rows = slides.with_columns(pl.lit(list(range(each))).alias("i")).explode("i")
    return rows.with_columns(tile_id=pl.format("{}-{}", "slide_id", "i"), field=pl.lit("wide"))


def stored_views(pool: pl.DataFrame, views: Floats) -> Stored:
    """Vectors [n, views, D] of the pool's tiles by slide."""
    slides = pool["slide_id"].to_numpy()
    return Stored(
        views={s: views[slides == s].astype(np.float32) for s in pool["slide_id"].unique()}
    )


def pooled_vectors(
    pool: pl.DataFrame, generator: Generator, label: float, center: float
) -> tuple[Floats, Floats]:
    """[n, D] what of the pool's tiles is not the center's, and the center's part."""
    owner = np.unique(pool["patient_id"].to_numpy(), return_inverse=True)[1]
    own = 0.5 * generator.standard_normal((int(owner.max()) + 1, D))[owner]
    own = own + effects_of(LABELS, label, 0)[codes(pool["label"])]
    own = own + generator.standard_normal((pool.height, D))
    return own, effects_of(CENTERS, center, 1)[codes(pool["center"])]


def changes(pool: pl.DataFrame, generator: Generator, views: int, size: float) -> Floats:
    """[n, views, D] how views move: by patients who differ, half alike in all views of a tile."""
    owner = np.unique(pool["patient_id"].to_numpy(), return_inverse=True)[1]
    strength = size * np.exp(0.4 * generator.standard_normal(int(owner.max()) + 1))[owner]
    shared = generator.standard_normal((pool.height, 1, D))
    moved = (shared + generator.standard_normal((pool.height, views, D))) / np.sqrt(2)
    return np.asarray(strength[:, None, None] * moved)


def rotated(
    patients: int, generator: Generator, quarter: float = 0.0, between: float = 0.0
) -> list[Asked]:
    """Rotation: how far tiles move at quarter turns, and between them."""
    p, pool = read(Rotation, "rotation"), pooled_tiles(patients)
    settings = rotation_views(p, 1).settings
    own, _ = pooled_vectors(pool, generator, 0.5, 0.0)
    angles = np.array([setting["angle"] for setting in settings])
    sizes = np.where(angles % 90, between, np.where(angles, quarter, 0.0))
    views = own[:, None] + sizes[:, None] * changes(pool, generator, len(settings), 1.0)
    figures = rotation_figures(rotation_statistics(stored_views(pool, views), pool, p), p)
    return [asked(figures, "rotation", p)]


@cache
def references() -> pl.DataFrame:
    """Looks of the centers; their numbers play no part, since no pixel is changed."""
    rows = [
        {
            "center": f"center {c}",
            "n_tiles": 24,
            "n_fitted": 24,
            "haematoxylin": [0.65, 0.70, 0.29],
            "eosin": [0.07, 0.99, 0.11],
            "high": [1.0 + c, 1.0],
            "lab_mean": [60.0, 20.0, -10.0],
            "lab_sd": [10.0, 5.0, 5.0],
            "reason": "",
        }
        for c in range(CENTERS)
    ]
    return pl.DataFrame(rows, schema=REFERENCE_SCHEMA)


def stained_views(
    pool: pl.DataFrame,
    generator: Generator,
    label: float = 0.0,
    center: float = 0.0,
    change: float = 0.0,
) -> Stored:
    """Tiles as they are and changed; a tile in another center's stain has that center's effect."""
    p = read(Appearance, "appearance")
    own, of_center = pooled_vectors(pool, generator, label, center)
    settings = appearance_views(references(), None, p).settings
    names = references()["center"].to_list()
    moved = changes(pool, generator, len(settings), change)
    effects, views = effects_of(CENTERS, center, 1), []
    for i, setting in enumerate(settings):
        seen = of_center
        if setting["view"] in TRANSFERS:
            place = setting["target"]
            targets = [target_centers(names, c, p.max_targets)[place] for c in pool["center"]]
            seen = effects[codes(pl.Series(targets))]
        views.append(own + seen + (moved[:, i] if setting["view"] != "clean" else 0.0))
    return stored_views(pool, np.stack(views, axis=1))


def stained(patients: int, generator: Generator, **effects: float) -> list[Asked]:
    """Stain and scanner."""
    p, pool = read(Appearance, "appearance"), pooled_tiles(patients)
    views = stained_views(pool, generator, **effects)
    found = appearance_statistics(views, pool, references(), p)
    return [asked(appearance_figures(found, p), "appearance", p)]


def in_conflict(patients: int, generator: Generator, **effects: float) -> list[Asked]:
    """Cue conflict."""
    p, pool = read(CueConflict, "cue_conflict"), pooled_tiles(patients)
    views = stained_views(pool, generator, **effects)
    found = cue_conflict_statistics(views, pool, references(), block("appearance"), p)
    return [asked(cue_conflict_figures(found, p), "cue_conflict", p)]


def stain_read(patients: int, generator: Generator, stain: float = 0.0) -> list[Asked]:
    """Stain probe: vectors that hold the stain of a tile, more or less."""
    p, pool = read(StainProbe, "stain_probe"), pooled_tiles(patients)
    owner = np.unique(pool["patient_id"].to_numpy(), return_inverse=True)[1]
    amount = generator.standard_normal((patients, len(MOMENTS)))[owner]
    amount = amount + 0.5 * generator.standard_normal(amount.shape)
    own, _ = pooled_vectors(pool, generator, 0.0, 0.0)
    vectors = own + stain * amount @ effects_of(len(MOMENTS), 1.0, 3)
    stains = pool.select("tile_id", "patient_id").with_columns(
        pl.Series(name, amount[:, i]) for i, name in enumerate(MOMENTS)
    )
    slides = patients_table(patients)
    shards = stored_views(pool, vectors[:, None]).tensors["views"]
    embedded = Stored(embedding={slide: shard[:, 0] for slide, shard in shards.items()})
    tiles = pool.select("tile_id", "slide_id")
    figures = stain_probe_figures(stain_probe_statistics(slides, tiles, embedded, stains, p), p)
    one = (f for f in figures if f.setting.get("target") == MOMENTS[0])
    return [asked(one, "stain_probe", p, ["r2", "selectivity"])]


def attacked(
    patients: int, generator: Generator, clean: float = 0.95, lost: float = 0.0
) -> list[Asked]:
    """Adversarial changes of one tile a patient, from its accuracy and the share an attack takes."""
    p = read(Adversarial, "adversarial")
    right = generator.random(patients) < clean
    noisy = right ^ (generator.random(patients) < 0.02)
    taken = noisy & (generator.random(patients) >= lost)
    correct = {
        (UNATTACKED, 0): right,
        **{(SIGN_NOISE, e): noisy for e in p.epsilons},
        **{(v.attack, v.epsilon): taken for v in p.white_box if v.attack != UNATTACKED},
    }
    rows = [
        {
            "attack": attack,
            "epsilon": epsilon,
            "patient_id": f"s{i:04d}",
            "n_tiles": 1,
            "n_correct": int(hit),
            "n_correct_unrounded": int(hit),
            "cosine_sum": 1.0,
            "ssim_sum": 1.0,
            "cosine_between_sum": 0.5,
            "chance": 1 / LABELS,
        }
        for (attack, epsilon), hits in correct.items()
        for i, hit in enumerate(hits)
    ]
    table = pl.DataFrame(rows, schema=ADVERSARIAL_SCHEMA)
    return [asked(adversarial_figures(table, {}, p), "adversarial", p)]


def seen_again(patients: int, generator: Generator, change: float = 0.0) -> list[Asked]:
    """The same tissue on two slides of each patient: how far the second moves a place's vector."""
    p, slides = read(SameTissue, "same_tissue"), patients_table(patients)
    here = generator.standard_normal((patients, 1, D)) + generator.standard_normal(
        (patients, _PLACES, D)
    )
    strength = change * np.exp(0.4 * generator.standard_normal((patients, 1, 1)))
    there = here + strength * generator.standard_normal(here.shape)
    again = slides.with_columns(slide_id=pl.format("{} again", "slide_id"))
    paired = [
        tiles_of(shown, _PLACES)
        .join(shown, on="slide_id")
        .with_columns(
            reference_id="patient_id",
            place=pl.col("tile_id").str.split("-").list.last(),
            region=pl.lit("0"),
            scanner=pl.lit(f"scanner {i}"),
            stain=pl.lit("stain"),
        )
        for i, shown in enumerate((slides, again))
    ]
    shards = [
        one_shard_each(shown, vectors[:, :, None]).tensors["embedding"]
        for shown, vectors in ((slides, here), (again, there))
    ]
    # Two slides are too few for a probe: none is judged.
    few = slides.head(2)
    cohort = few, tiles_of(few, 1), one_shard_each(few, here[:2, :1])
    views = Stored(views=shards[0] | shards[1])
    found = same_tissue_statistics(views, pl.concat(paired), *cohort, p)
    pairs = pl.DataFrame(schema=TISSUE_PAIRS_SCHEMA)
    return [asked(same_tissue_figures(found, pairs, p), "same_tissue", p)]


def brought(patients: int, generator: Generator, change: float = 0.0) -> list[Asked]:
    """Features that someone brought: how far they are from the encoder's own."""
    p, slides = read(FeatureAgreement, "feature_agreement"), patients_table(patients)
    own = generator.standard_normal((patients, 1, D)) + generator.standard_normal(
        (patients, _PLACES, D)
    )
    strength = change * np.exp(0.4 * generator.standard_normal((patients, 1, 1)))
    moved = own + strength * generator.standard_normal(own.shape)
    tiles = tiles_of(slides, _PLACES).with_columns(field_um=pl.lit(112.0), mpp=pl.lit(0.5))
    both = (one_shard_each(slides, vectors) for vectors in (moved, own))
    features, others = both
    found = feature_agreement_statistics(slides, tiles, features, tiles, others, p)
    return [asked(feature_agreement_figures(found, p), "feature_agreement", p)]
