"""Attack the tiles of the adversarial pool, slide by slide, and show them to other encoders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.attacks import (
    MAX_GREY_LEVEL,
    ProbeObjective,
    add_perturbation,
    attack_series,
    gaussian_noise,
    random_start,
    sign_noise,
    to_images,
    to_tiles,
    universal_perturbation,
)
from pathfm_kedro.encoders.base import Encoder, Pixels, Vectors
from pathfm_kedro.encoders.gradients import DifferentiableEncoder, differentiable
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.pipelines.robustness.adversarial import (
    AdversarialParameters,
    Probe,
    UniversalParameters,
    attacked_rows,
    cosines,
    probe_of_fold,
)
from pathfm_kedro.pipelines.robustness.views import tile_seed
from pathfm_kedro.slides.fields import TileFields, slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.tables import Embeddings, digest_of_tiles, digests_by_slide

if TYPE_CHECKING:
    import torch

#: Raised with any change of what an attack makes of the same tile.
_REVISION = "1"

#: Folds are halved for the universal perturbation: it needs no probe, so two fits serve all folds.
_HALVES = 2


@dataclass(frozen=True, eq=False)
class FitUniversal:
    """The universal perturbation that is used on one half of the folds, fitted on the other.

    Attributes
    ----------
    slide_id
        ``half-0`` or ``half-1``: the half that it is used on.
    slide_fingerprints
        Content of the slides that it is fitted on.
    fields
        Where the tiles lie that it is fitted on, slide by slide.
    tile_ids
        Their ids.
    told
        Sizes, steps and batch.
    spec
        The encoder.
    seed
        Of the start.
    """

    slide_id: str
    slide_fingerprints: tuple[str, ...]
    fields: tuple[TileFields, ...]
    tile_ids: tuple[str, ...]
    told: UniversalParameters
    spec: EncoderSpec
    seed: int

    def header(self) -> dict[str, str]:
        """What the shard depends on."""
        return _encoder_header(self.spec) | {
            "slides": json.dumps(self.slide_fingerprints),
            "fields": json.dumps([fields.digest() for fields in self.fields]),
            "tile_ids": digest_of_tiles(self.tile_ids),
            "attack": json.dumps(
                [_REVISION, self.told.epsilons, self.told.steps, self.told.batch, self.seed]
            ),
            "units": "size x height x width x channel, grey levels of 255",
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """``universal`` int8 [sizes, height, width, 3]; no sizes where there is no gradient."""
        gradients = differentiable(load_encoder(self.spec))
        pixels = self.fields[0].pixels
        if gradients is None:
            return {"universal": np.zeros((0, pixels, pixels, 3), np.int8)}
        tiles = to_images(np.concatenate([t for f in self.fields for t, _ in f.batches(1)]))
        start = random_start(pixels, self.seed)
        deltas = [
            universal_perturbation(
                gradients.embed, tiles, e / MAX_GREY_LEVEL, self.told.steps, start, self.told.batch
            )
            for e in self.told.epsilons
        ]
        return {"universal": np.stack(deltas)}


@dataclass(frozen=True, eq=False)
class AttackSlide:
    """The pool's tiles of one slide under every attack.

    Attributes
    ----------
    slide_id, slide_fingerprint
        Which slide, and its content.
    fields
        Where the tiles lie.
    tile_ids, targets
        Their ids and the probe's class of each, in the order of the fields.
    tiles_digest
        Digest of the ids.
    probe
        Trained on other patients.
    universal
        int8 [sizes, height, width, 3], fitted on other patients.
    told
        The experiment's parameters.
    spec
        The encoder.
    """

    slide_id: str
    slide_fingerprint: str
    fields: TileFields
    tile_ids: tuple[str, ...]
    targets: tuple[int, ...]
    tiles_digest: str
    probe: Probe
    universal: NDArray[np.int8]
    told: AdversarialParameters
    spec: EncoderSpec

    def header(self) -> dict[str, str]:
        """What the shard depends on."""
        told = self.told
        return _encoder_header(self.spec) | {
            "slide": self.slide_fingerprint,
            "fields": self.fields.digest(),
            "tile_ids": self.tiles_digest,
            "attack": json.dumps(
                [_REVISION, told.epsilons, told.pgd_steps, told.transfer_epsilon, told.seed]
            ),
            "probe": json.dumps([self.probe.digest(), self.targets]),
            "universal": hashlib.sha256(self.universal.tobytes()).hexdigest(),
            "units": "tile x variant; margins in logits, vectors as the encoder gives them",
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """Every variant of every tile; A variants, U of them also read before rounding.

        - ``embedding`` float32 [n, A, d], ``margin`` float64 [n, A] (true logit minus the best
          other) and ``ssim`` float64 [n, A], of images rounded to 8 bits and embedded as any tile;
        - ``margin_unrounded`` float64 [n, U], on the path with gradients;
        - ``attacked`` uint8 [n, 1, height, width, 3], by the strongest attack, for other encoders;
          [n, 0, …] where there is no gradient.

        Raises
        ------
        ValueError
            If the encoder gives a number that is not finite.
        """
        encoder = load_encoder(self.spec)
        gradients = differentiable(encoder)
        batches = self.fields.batches(1)
        rows = [
            self._tile(encoder, gradients, pixels[0], truth, tile_id, target)
            for tile_id, target, (pixels, truth) in zip(
                self.tile_ids, self.targets, batches, strict=True
            )
        ]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _tile(
        self,
        encoder: Encoder,
        gradients: DifferentiableEncoder | None,
        tile: Pixels,
        truth: Vectors | None,
        tile_id: str,
        target: int,
    ) -> dict[str, NDArray[np.generic]]:
        seed = _seed(self.told.seed, tile_id)
        noises = np.stack([_noisy(tile, v.attack, v.epsilon, seed) for v in self.told.noises])
        if gradients is None:
            found = _WhiteBox.nothing(tile)
        else:
            found = _white_box(gradients, self.probe, tile, target, self.told, seed, self.universal)
        images = np.concatenate([noises, found.images])
        vectors = _embed(encoder, images, truth, tile_id)
        return {
            "embedding": vectors,
            "margin": self.probe.margins(vectors, np.full(len(images), target)),
            "margin_unrounded": found.margins_unrounded,
            "ssim": ssim_to_first(images),
            "attacked": found.for_others,
        }


@dataclass(frozen=True, eq=False)
class ShowToOther:
    """Tiles of one slide that were made against other encoders, shown to this one.

    Attributes
    ----------
    slide_id, slide_fingerprint, fields, tile_ids, targets, tiles_digest, probe, spec
        As of :class:`AttackSlide`; encoder and probe are those that are shown the tiles.
    attacked
        uint8 [n, height, width, 3] by the name of the encoder that the tiles were made against, or
        None where there are none.
    """

    slide_id: str
    slide_fingerprint: str
    fields: TileFields
    tile_ids: tuple[str, ...]
    targets: tuple[int, ...]
    tiles_digest: str
    probe: Probe
    attacked: tuple[tuple[str, Pixels | None], ...]
    spec: EncoderSpec

    def header(self) -> dict[str, str]:
        """What the shard depends on."""
        shown = [
            [name, "" if tiles is None else hashlib.sha256(tiles.tobytes()).hexdigest()]
            for name, tiles in self.attacked
        ]
        return _encoder_header(self.spec) | {
            "slide": self.slide_fingerprint,
            "fields": self.fields.digest(),
            "tile_ids": self.tiles_digest,
            "shown": json.dumps([_REVISION, shown]),
            "probe": json.dumps([self.probe.digest(), self.targets]),
            "units": "tile x encoder that the tile was made against; NaN where there is no such tile",
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """``margin`` and ``cosine`` (to the clean tile) float64 [n, encoders]."""
        encoder = load_encoder(self.spec)
        pairs = [self._shown(encoder, *entry) for entry in self._tiles()]
        margin, cosine = np.array(pairs, dtype=np.float64).swapaxes(0, 1)
        return {"margin": margin, "cosine": cosine}

    def _tiles(self) -> Iterator[tuple[int, Pixels, Vectors | None]]:
        for i, (pixels, truth) in enumerate(self.fields.batches(1)):
            yield i, pixels, truth

    def _shown(
        self, encoder: Encoder, i: int, clean: Pixels, truth: Vectors | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        there = np.array([tiles is not None for _, tiles in self.attacked])
        shown = [tiles[i] for _, tiles in self.attacked if tiles is not None]
        vectors = _embed(encoder, np.stack([clean[0], *shown]), truth, self.tile_ids[i])
        margin, cosine = np.full((2, len(there)), np.nan)
        margin[there] = self.probe.margins(vectors[1:], np.full(len(shown), self.targets[i]))
        cosine[there] = cosines(vectors[1:].astype(np.float64), vectors[:1].astype(np.float64))
        return margin, cosine


def plan_universal_perturbation(
    slides: pl.DataFrame,
    pool: pl.DataFrame,
    files: SlideFiles,
    encoder: Mapping[str, Any],
    runtime: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
) -> ShardPlan:
    """Two jobs, one for each half of the folds; none where the parameters leave it out.

    Parameters
    ----------
    slides
        The slides table.
    pool
        From :func:`~.adversarial.choose_adversarial_pool`.
    files
        The cohort's folder.
    encoder
        The entry of ``encoders``.
    runtime
        Its recorded runtime.
    tile_parameters
        ``pixels``: side of a tile.
    parameters
        Of the experiment.
    engine
        Where jobs run.
    name
        The encoder's name.
    """
    told = AdversarialParameters.parse(parameters)
    spec = EncoderSpec.from_parameters(name, encoder).with_runtime(runtime)
    pixels = int(tile_parameters["pixels"])
    jobs = []
    for half in range(_HALVES) if told.universal is not None else ():
        tiles = _universal_tiles(pool, half, told)
        found = slide_fields(slides, tiles, files, pixels)
        if found:
            jobs.append(_fit_job(half, found, tiles, told, spec))
    return ShardPlan(
        jobs,
        EngineSettings(**engine),
        f"universal perturbation of {name}",
        lambda: load_encoder(spec),
    )


def _fit_job(
    half: int,
    found: list[tuple[dict[str, Any], TileFields]],
    tiles: pl.DataFrame,
    told: AdversarialParameters,
    spec: EncoderSpec,
) -> FitUniversal:
    if told.universal is None:
        raise ValueError("adversarial.universal is null: there is nothing to fit")
    return FitUniversal(
        _half_name(half),
        tuple(slide["fingerprint"] for slide, _ in found),
        tuple(fields for _, fields in found),
        tuple(tiles["tile_id"]),
        told.universal,
        spec,
        told.seed,
    )


def _half_name(half: int) -> str:
    return f"half-{half}"


def _universal_tiles(pool: pl.DataFrame, half: int, told: AdversarialParameters) -> pl.DataFrame:
    """Training tiles of patients in the other half of the folds: labels take turns, then slides."""
    if told.universal is None:
        return pool.clear()
    others = pool.filter("trains", pl.col("fold") % _HALVES != half).with_row_index("_row")
    random = np.random.default_rng(told.seed).permutation(len(others))
    others = others.with_columns(_random=pl.Series(random, dtype=pl.Int64), _turn=pl.lit(0))
    for group in (["label", "slide_id"], ["label"]):
        others = others.sort("_turn", "_random").with_columns(
            _turn=pl.int_range(pl.len()).over(group)
        )
    chosen = others.sort("_turn", "_random").head(told.universal.tiles).sort("slide_id", "_row")
    return chosen.select(pool.columns)


def plan_adversarial_tiles(
    slides: pl.DataFrame,
    pool: pl.DataFrame,
    probes: pl.DataFrame,
    universal: Embeddings,
    files: SlideFiles,
    encoder: Mapping[str, Any],
    runtime: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
) -> ShardPlan:
    """One job per slide of the attacked tiles.

    Parameters
    ----------
    slides
        The slides table.
    pool
        From :func:`~.adversarial.choose_adversarial_pool`.
    probes
        From :func:`~.adversarial.fit_adversarial_probes`.
    universal
        Shards of :func:`plan_universal_perturbation`.
    files
        The cohort's folder.
    encoder
        The entry of ``encoders``.
    runtime
        Its recorded runtime.
    tile_parameters
        ``pixels``: side of a tile.
    parameters
        Of the experiment.
    engine
        Where jobs run.
    name
        The encoder's name.
    """
    told = AdversarialParameters.parse(parameters)
    spec = EncoderSpec.from_parameters(name, encoder).with_runtime(runtime)
    deltas = {s: universal.stack([s], "universal").astype(np.int8) for s in universal.slide_ids}
    nothing = np.zeros((0, 0, 0, 3), np.int8)
    jobs = [
        AttackSlide(
            slide["slide_id"],
            slide["fingerprint"],
            fields,
            *_told_of(group, probe),
            probe,
            deltas.get(_half_name(group["fold"][0] % _HALVES), nothing),
            told,
            spec,
        )
        for slide, fields, group, probe in _probed(slides, pool, probes, files, tile_parameters)
    ]
    return ShardPlan(
        jobs, EngineSettings(**engine), f"attacking {name}", lambda: load_encoder(spec)
    )


def plan_adversarial_transfer(
    slides: pl.DataFrame,
    pool: pl.DataFrame,
    probes: pl.DataFrame,
    files: SlideFiles,
    encoder: Mapping[str, Any],
    runtime: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *attacks: Embeddings,
    name: str,
    sources: Sequence[str],
) -> ShardPlan:
    """One job per slide of the attacked tiles that some other encoder has adversarial tiles of.

    Parameters
    ----------
    slides, pool, files, encoder, tile_parameters, engine, name
        As of :func:`plan_adversarial_tiles`; the encoder is the one that is shown the tiles.
    probes
        Of that encoder.
    *attacks
        Shards of :func:`plan_adversarial_tiles` of other encoders.
    sources
        Names of those encoders.
    """
    made = dict(zip(sources, attacks, strict=True))
    spec = EncoderSpec.from_parameters(name, encoder).with_runtime(runtime)
    jobs = []
    for slide, fields, group, probe in _probed(slides, pool, probes, files, tile_parameters):
        shown = _shown(made, slide, len(group))
        if any(tiles is not None for _, tiles in shown):
            told = _told_of(group, probe)
            jobs.append(
                ShowToOther(
                    slide["slide_id"], slide["fingerprint"], fields, *told, probe, shown, spec
                )
            )
    return ShardPlan(
        jobs,
        EngineSettings(**engine),
        f"showing adversarial tiles to {name}",
        lambda: load_encoder(spec),
    )


def _shown(
    attacks: Mapping[str, Embeddings], slide: Mapping[str, Any], n: int
) -> tuple[tuple[str, Pixels | None], ...]:
    """The slide's adversarial tiles by the encoder attacked; None where there are none."""
    shown: list[tuple[str, Pixels | None]] = []
    for source, shards in attacks.items():
        there = slide["slide_id"] in shards.slide_ids
        tiles = shards.stack([slide["slide_id"]], "attacked") if there else np.zeros((0, 0))
        usable = len(tiles) == n and tiles.shape[1] == 1
        shown.append((source, tiles[:, 0].astype(np.uint8) if usable else None))
    return tuple(shown)


def _probed(
    slides: pl.DataFrame,
    pool: pl.DataFrame,
    probes: pl.DataFrame,
    files: SlideFiles,
    tile_parameters: Mapping[str, Any],
) -> Iterator[tuple[dict[str, Any], TileFields, pl.DataFrame, Probe]]:
    """Each slide with attacked tiles, where they lie, the tiles and the probe of their fold."""
    rows = attacked_rows(pool, probes)
    groups = dict(rows.group_by("slide_id", maintain_order=True))
    for slide, fields in slide_fields(slides, rows, files, int(tile_parameters["pixels"])):
        group = groups[(slide["slide_id"],)]
        probe = probe_of_fold(probes, group["fold"][0])
        if probe is not None:
            yield slide, fields, group, probe


def _told_of(group: pl.DataFrame, probe: Probe) -> tuple[tuple[str, ...], tuple[int, ...], str]:
    """Ids of a slide's tiles, the class of each, and the ids' digest."""
    targets = tuple(probe.labels.index(label) for label in group["label"])
    (digest,) = digests_by_slide(group).values()
    return tuple(group["tile_id"]), targets, digest


@dataclass(frozen=True, eq=False)
class _WhiteBox:
    """What the attacks made of one tile.

    ``images`` uint8 [variants, height, width, 3]; ``margins_unrounded`` [U]; ``for_others`` uint8
    [0 or 1, height, width, 3].
    """

    images: Pixels
    margins_unrounded: NDArray[np.float64]
    for_others: Pixels

    @classmethod
    def nothing(cls, tile: Pixels) -> _WhiteBox:
        none = np.zeros((0, *tile.shape), np.uint8)
        return cls(none, np.zeros(0), none)


def _white_box(
    gradients: DifferentiableEncoder,
    probe: Probe,
    tile: Pixels,
    target: int,
    told: AdversarialParameters,
    seed: int,
    universal: NDArray[np.int8],
) -> _WhiteBox:
    """Attack one tile at every ε at once: one batch, whatever else the slide holds."""
    wanted = () if told.universal is None else told.universal.epsilons
    if wanted and universal.shape != (len(wanted), *tile.shape):
        raise ValueError(
            "there is no universal perturbation for this slide's half of the folds: see why its fit "
            "failed, or set adversarial.universal to null"
        )
    clean = to_images(tile[None])
    objective = _objective(gradients, probe, target)
    series = attack_series(objective, clean, told.epsilons, told.pgd_steps, seed)
    moved = [add_perturbation(tile, delta)[None] for delta in universal[: len(wanted)]]
    strongest = to_tiles(series[-1].images)
    return _WhiteBox(
        np.concatenate([*(to_tiles(found.images) for found in series), *moved]),
        _unrounded(gradients, probe, target, [clean, *(found.images for found in series[1:])]),
        strongest[[told.epsilons.index(told.transfer_epsilon)]],
    )


def _objective(gradients: DifferentiableEncoder, probe: Probe, target: int) -> ProbeObjective:
    import torch

    return ProbeObjective(
        gradients.embed,
        torch.tensor(probe.weight),
        torch.tensor(probe.bias),
        torch.tensor([target]),
    )


def _unrounded(
    gradients: DifferentiableEncoder, probe: Probe, target: int, images: list[torch.Tensor]
) -> NDArray[np.float64]:
    """Margins of images as they are, batch by batch."""
    import torch

    with torch.no_grad():
        vectors = np.concatenate([gradients.embed(batch).numpy() for batch in images])
    return probe.margins(vectors, np.full(len(vectors), target))


def _embed(encoder: Encoder, images: Pixels, truth: Vectors | None, tile_id: str) -> Vectors:
    """Vectors of the versions of one tile; what was drawn on it is the same in each."""
    repeated = None if truth is None else np.repeat(truth, len(images), axis=0)
    vectors = encoder.embed(images, repeated)
    if not np.isfinite(vectors).all():
        raise ValueError(f"the encoder gives NaN or infinity on a version of tile {tile_id}")
    return vectors


def _noisy(tile: Pixels, attack: str, epsilon: int, seed: int) -> Pixels:
    makers = {"sign_noise": sign_noise, "gaussian_noise": gaussian_noise}
    return makers[attack](tile, epsilon, seed) if attack in makers else tile


def ssim_to_first(images: Pixels) -> NDArray[np.float64]:
    """Structural similarity of each image with the first, in the setting of Wang et al. 2004.

    Parameters
    ----------
    images
        uint8 [n, height, width, 3].

    Returns
    -------
    ndarray
        [n], 1 for an equal image.

    Examples
    --------
    >>> ssim_to_first(np.zeros((2, 16, 16, 3), np.uint8)).tolist()
    [1.0, 1.0]
    """
    from skimage.metrics import structural_similarity

    compare: Any = structural_similarity  # scikit-image has no types
    # It compares two images at a time.
    return np.array(
        [
            compare(
                images[0],
                image,
                channel_axis=2,
                data_range=MAX_GREY_LEVEL,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for image in images
        ]
    )


def _seed(seed: int, tile_id: str) -> int:
    return tile_seed(f"{seed}:{tile_id}")


def _encoder_header(spec: EncoderSpec) -> dict[str, str]:
    encoder = load_encoder(spec)
    return {
        "encoder": encoder.fingerprint,
        "preprocessing": json.dumps(dict(encoder.preprocessing), sort_keys=True),
    }
