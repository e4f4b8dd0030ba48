"""Small networks trained from scratch on the cohort's own labels: what a foundation model has to beat.

A rival is trained on some patients and audited on the others: whoever trained it gets no vectors from
it, so nothing that it learnt by heart is ever measured. The split goes by patients and evenly over
labels; it comes from the slides table and the entry alone, so that everybody who needs it computes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.batches import Pixels, turned
from pathfm_kedro.encoders.entry_checks import AUTO
from pathfm_kedro.encoders.fabric import fitted_on, training_device
from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.encoders.training import (
    AdamWSettings,
    Tensors,
    class_weights,
    classification_loss,
    weights_of,
)
from pathfm_kedro.engine import FitCheckpoint
from pathfm_kedro.statistics.cross_validation import patient_folds
from pathfm_kedro.statistics.parameters import STRICT
from pathfm_kedro.statistics.sampling import shuffled_turns

if TYPE_CHECKING:
    import torch

    from pathfm_kedro.encoders.torch_encoder import Network

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]

#: Raised with any change of what is fitted to the same tiles.
_REVISION = "1"
#: Networks by the name after ``trained:``.
RIVALS = ("small_cnn", "small_vit")
#: Side of a rival's input where the entry gives none, px.
SIDE = 64
#: Of the training patients one in so many tells when to stop, where that is asked for.
_VALIDATION = 5
#: Keeps the split apart from the folds of experiments, which come from the same numbers: were they
#: one, all audited patients would lie in the same folds.
_OF_SPLIT = 1
TRAINS = "its patient trains this encoder, which is audited on the others"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Training(AdamWSettings):
    """How a rival is trained: the keys of ``training`` in its entry.

    Attributes
    ----------
    folds, audited_fold
        Patients are split into so many groups; this one is audited, the others train.
    repeats
        Networks, each audited on another group and called ``<name>__2`` and so on; as many as folds
        where not given, so that every patient is audited once. An entry with ``audited_fold`` is one.
    epochs
        Passes over the training tiles at most; none leaves the network as it is drawn.
    patience
        Epochs without a smaller loss on a fifth of the training patients after which training ends;
        null trains on all of them, for all epochs.
    tiles_per_slide
        At most.
    batch
        Tiles of a step.
    learning_rate, weight_decay
        Of AdamW; the rate falls to nothing along a cosine.
    """

    folds: Annotated[int, Field(ge=2)] = 2
    audited_fold: Annotated[int, Field(ge=0)] = 0
    repeats: Count | None = None
    epochs: Annotated[int, Field(ge=0)] = 30
    patience: Count | None = None
    tiles_per_slide: Count = 64
    batch: Count = 32
    learning_rate: Positive = 0.001
    weight_decay: Annotated[float, Field(ge=0)] = 0.05

    def described(self) -> dict[str, Any]:
        """What decides the weights: how often the split is repeated does not."""
        return {key: value for key, value in asdict(self).items() if key != "repeats"}

    @classmethod
    def of(cls, spec: EncoderSpec) -> Training:
        """Read the entry of a rival.

        Raises
        ------
        ValueError
            Naming the key that is unknown or out of range.
        """
        where = f"encoders.{spec.name}"
        name = spec.model.partition(":")[2]
        if name not in RIVALS:
            raise ValueError(
                f"{where}.model is '{spec.model}': trained on the cohort can be "
                + " and ".join(f"trained:{known}" for known in RIVALS)
            )
        if side_of(spec) % 16:
            raise ValueError(
                f"{where}.input_pixels is {side_of(spec)}: give a multiple of 16 px, as {SIDE}"
            )
        try:
            found = TypeAdapter(cls).validate_python(dict(spec.training))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ValueError(
                f"{where}.training.{key} is {first['input']!r}: {first['msg'].lower()}; its keys are "
                f"{', '.join(asdict(cls()))}"
            ) from None
        if found.audited_fold >= found.folds:
            raise ValueError(
                f"{where}.training.audited_fold is {found.audited_fold}: with {found.folds} folds give "
                f"0 to {found.folds - 1}"
            )
        if (found.repeats or 1) > found.folds:
            raise ValueError(
                f"{where}.training.repeats is {found.repeats}: with {found.folds} folds a patient "
                f"would be audited twice; give at most {found.folds}, or raise folds"
            )
        return found


def side_of(spec: EncoderSpec) -> int:
    """Side of a rival's input, px."""
    return spec.input_pixels or SIDE


@plain_dataclass(frozen=True)
class Split:
    """Patients that train a rival, that tell it when to stop, and that it is audited on.

    Attributes
    ----------
    train, validation, audited
        Names of patients; no one is in two of them.
    """

    train: frozenset[str]
    validation: frozenset[str]
    audited: frozenset[str]


def split_patients(slides: pl.DataFrame, spec: EncoderSpec) -> Split:
    """Split the cohort's patients, evenly in every label.

    Parameters
    ----------
    slides
        Slides table: patient_id, label, status. Usable slides take part.
    spec
        The rival.
    """
    training = Training.of(spec)
    seed = int(np.random.SeedSequence([spec.seed or 0, _OF_SPLIT]).generate_state(1)[0])
    rows = slides.filter(pl.col("status") == "usable").select("patient_id", "label").unique()
    rows = rows.sort("patient_id", "label", nulls_last=True)
    patients = rows["patient_id"].cast(pl.String()).to_numpy()
    labels = rows["label"].fill_null("").to_numpy()
    if not len(patients):
        return Split(frozenset(), frozenset(), frozenset())
    fold = patient_folds(patients, training.folds, seed, labels)
    audited = frozenset(patients[fold == training.audited_fold])
    others = fold != training.audited_fold
    stops: frozenset[str] = frozenset()
    if training.patience is not None and others.any():
        inner = patient_folds(patients[others], _VALIDATION, seed, labels[others])
        stops = frozenset(patients[others][inner == 0])
    return Split(frozenset(patients[others]) - stops, stops, audited)


def left_out(slides: pl.DataFrame, spec: EncoderSpec | None) -> dict[str, str]:
    """Slides that an encoder must not be measured on, with the reason; none unless it is a rival."""
    if spec is None or not spec.is_trained:
        return {}
    split = split_patients(slides, spec)
    patients = pl.col("patient_id").cast(pl.String())
    trains = patients.is_in(sorted(split.train | split.validation))
    # Slides that show a patient's tissue again show it, too.
    own = slides.filter(trains, pl.col("status") != "unusable")
    return dict.fromkeys(own["slide_id"].sort().to_list(), TRAINS)


def training_tiles(slides: pl.DataFrame, tiles: pl.DataFrame, spec: EncoderSpec) -> pl.DataFrame:
    """Tiles that a rival is fitted on, in the order of the tiles table.

    Parameters
    ----------
    slides, tiles
        The tables.
    spec
        The rival.
    """
    labelled = slides.filter(pl.col("label").is_not_null())
    own = labelled.filter(pl.col("slide_id").is_in(list(left_out(slides, spec))))["slide_id"]
    rows = tiles.filter(pl.col("slide_id").is_in(own.to_list())).with_row_index("_row")
    shuffled = shuffled_turns(rows.sort("tile_id"), [["slide_id"]], spec.seed or 0)
    most = Training.of(spec).tiles_per_slide
    chosen = shuffled.filter(pl.int_range(pl.len()).over("slide_id") < most)
    return chosen.sort("_row").drop("_row")


@plain_dataclass(frozen=True)
class RivalFit:
    """The fit of a rival, run by the dataset that stores its weights unless they are there already.

    Attributes
    ----------
    spec
        The rival.
    slides
        slide_id, patient_id and label of the slides that train it.
    validation
        Patients among them that tell when to stop.
    tiles
        Their pixels, slide by slide.
    """

    spec: EncoderSpec
    slides: pl.DataFrame
    validation: frozenset[str]
    tiles: Shards

    @property
    def title(self) -> str:
        """For the progress bar."""
        return f"training {self.spec.name}"

    @property
    def epochs(self) -> int:
        """At most."""
        return Training.of(self.spec).epochs

    def header(self) -> dict[str, str]:
        """What the weights depend on: data, software, settings."""
        import torch

        data = [
            (slide, patient, label, dict(self.tiles.slide_header(slide)))
            for slide, patient, label in self._rows()
        ]
        described = json.dumps([data, sorted(self.validation)], sort_keys=True)
        return {
            "model": self.spec.model,
            "revision": _REVISION,
            "seed": str(self.spec.seed or 0),
            "training": json.dumps(Training.of(self.spec).described(), sort_keys=True),
            "input_pixels": str(side_of(self.spec)),
            "data": hashlib.sha256(described.encode()).hexdigest(),
            "torch": torch.__version__.partition("+")[0],
            **fitted_on(self.spec),
        }

    def fit(self, checkpoint: FitCheckpoint) -> tuple[Tensors, dict[str, Any]]:
        """Weights, and how training went.

        Raises
        ------
        ValueError
            If fewer than two labels are left to train on.
        """
        import torch

        from pathfm_kedro.encoders.architectures import with_classifier

        rows = list(self._rows())
        labels = sorted({label for _, patient, label in rows if patient not in self.validation})
        if len(labels) < 2:
            raise ValueError(
                f"encoders.{self.spec.name} is trained to tell labels apart, and its training patients "
                f"carry {len(labels)} ({', '.join(labels) or 'none'}): add patients, raise "
                f"encoders.{self.spec.name}.training.folds, or leave the encoder out"
            )
        rows = [row for row in rows if row[2] in labels]
        training, seed = Training.of(self.spec), self.spec.seed or 0
        network, device = untrained(self.spec), training_device(self.spec)
        model = with_classifier(network.model, len(labels), seed).to(device)
        train, held_out = (
            _Tiles.read(self.tiles, [row for row in rows if (row[1] in self.validation) == held])
            for held in (False, True)
        )
        targets = np.array([labels.index(label) for label in train.labels])
        weight = class_weights(targets, len(labels))

        def prepared(pixels: Pixels) -> torch.Tensor:
            return network.prepared(torch.from_numpy(pixels).to(device))

        loss = classification_loss(
            lambda rows, rng: prepared(turned(train.pixels[rows], rng)), targets, weight
        )
        truth = np.array([labels.index(label) for label in held_out.labels], np.int64)
        held_loss = classification_loss(
            lambda rows, _: prepared(held_out.pixels[rows]), truth, weight
        )

        def score(model: Any) -> float:
            parts = np.split(np.arange(len(truth)), range(256, len(truth), 256))
            unused = np.random.default_rng(seed)
            return -float(np.mean([float(held_loss(model, (rows, unused))) for rows in parts]))

        judged = training.patience is not None and len(truth) > 0
        history = training.fit(
            model,
            len(targets),
            loss,
            seed,
            checkpoint,
            validate=score if judged else None,
            patience=training.patience if judged else None,
        )
        described = {
            "labels": labels,
            "n_tiles": len(targets),
            "n_patients": len({row[1] for row in rows} - self.validation),
            **asdict(history),
        }
        return weights_of(network.model), described

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        """Slide, patient and label of the slides whose tiles could be read."""
        known = set(self.tiles.slide_ids)
        rows = self.slides.sort("slide_id").select("slide_id", "patient_id", "label")
        return ((s, str(p), str(label)) for s, p, label in rows.iter_rows() if s in known)


def plan_rival(slides: pl.DataFrame, spec: EncoderSpec, tiles: Shards) -> RivalFit:
    """The fit of a rival to its training patients.

    Parameters
    ----------
    slides
        Slides table.
    spec
        The rival.
    tiles
        Shards with ``pixels`` uint8 [n, side, side, 3] of the slides in :func:`training_tiles`.
    """
    split = split_patients(slides, spec)
    own = slides.filter(
        pl.col("slide_id").is_in(list(left_out(slides, spec))), pl.col("label").is_not_null()
    )
    return RivalFit(spec, own, split.validation, tiles)


@plain_dataclass(frozen=True)
class _Tiles:
    """Pixels [n, side, side, 3] and the label of each tile."""

    pixels: Pixels
    labels: tuple[str, ...]

    @classmethod
    def read(cls, shards: Shards, rows: list[tuple[str, str, str]]) -> _Tiles:
        parts = [shards.load_slide(slide, "pixels") for slide, _, _ in rows]
        labels = [row[2] for row, part in zip(rows, parts, strict=True) for _ in part]
        pixels = np.concatenate(parts) if parts else np.zeros((0, 1, 1, 3), np.uint8)
        return cls(pixels, tuple(labels))


def untrained(spec: EncoderSpec) -> Network:
    """The network of a rival before it is fitted, as the encoder will prepare its tiles."""
    from pathfm_kedro.encoders.torch_encoder import Network, declared_preprocessing

    model = build(spec)
    return Network(model, spec.pooling, declared_preprocessing(model, spec), "", "")


def build(spec: EncoderSpec) -> Any:
    """The architecture of a rival with weights drawn from its seed."""
    from pathfm_kedro.encoders.architectures import rival

    Training.of(spec)
    return rival(spec.model.partition(":")[2], side_of(spec), spec.seed or 0)


def fitted_network(spec: EncoderSpec) -> Any:
    """The network of a rival with the weights that were fitted.

    Raises
    ------
    ValueError
        If the spec does not say where they are, or they are not there or do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from pathfm_kedro.project import resolve_path

    mend = f"kedro run --pipelines embed --namespaces embed.{spec.name}"
    model = build(spec)
    if spec.checkpoint is None:
        raise ValueError(f"encoders.{spec.name} is not fitted yet: {mend}")
    try:
        model.load_state_dict(load_file(resolve_path(spec.checkpoint)), strict=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"encoders.{spec.name}: its fitted weights cannot be read from '{spec.checkpoint}' "
            f"({type(error).__name__}): fit it again by {mend}"
        ) from error
    return model


def with_weights(spec: EncoderSpec, path: str) -> EncoderSpec:
    """A rival's spec with its fitted weights.

    Its runtime is given where the entry leaves it open: so small a network is not worth a trial.
    """
    runtime = "channels_last" if spec.runtime == AUTO else spec.runtime
    return replace(spec, checkpoint=path, runtime=runtime)
