"""The fit of one arm of an adaptation: its trials, of which the best on inner patients is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.encoders.adaptation_arms import Arm, Search, Task, Trial, between
from pathfm_kedro.encoders.batches import outputs, shuffled_batches, turned
from pathfm_kedro.encoders.lora import add_lora
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.encoders.training import (
    Batch,
    DivergedError,
    History,
    Recipe,
    Tensors,
    class_weights,
    classification_loss,
    fit,
    tensors_below,
    weights_of,
)
from pathfm_kedro.engine import FitCheckpoint
from pathfm_kedro.statistics.cross_validation import balanced_accuracy

if TYPE_CHECKING:
    import torch

    from pathfm_kedro.encoders.torch_encoder import Network

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Parts of a checkpoint: the weights of the best trial so far, and the state of the trial that runs.
_KEPT, _NOW = "kept.", "now."


def starting_network(
    arm: Arm, spec: EncoderSpec, untrained: EncoderSpec, seed: int, side: int | None, small: int
) -> Network:
    """The network that an arm starts from, for the caller alone.

    Parameters
    ----------
    arm
        Which.
    spec, untrained
        The encoder, and the same with weights to be drawn.
    seed
        Of drawn weights.
    side
        Of the encoder's input, px; None for what it declares.
    small
        Of the small CNN's input, px.
    """
    from pathfm_kedro.encoders.architectures import rival
    from pathfm_kedro.encoders.torch_encoder import Network, declared_preprocessing

    if arm.start == "small_cnn":
        model = rival("small_cnn", small, seed)
        drawn = EncoderSpec("small_cnn", "trained:small_cnn")
        return Network(model, "default", declared_preprocessing(model, drawn), "", "")
    network = _taken(spec if arm.start == "encoder" else replace(untrained, seed=seed))
    if side is None:
        return network
    changed = {**network.preprocessing, "input_pixels": side}
    return replace(network, preprocessing=changed)


def _taken(spec: EncoderSpec) -> Network:
    """A copy of the network; the original is left to the next who takes it."""
    from copy import deepcopy

    from pathfm_kedro.encoders.torch_encoder import give_back, take_network

    original = take_network(spec)
    copied = replace(original, model=deepcopy(original.model))
    give_back(spec, original)
    return copied


@plain_dataclass(frozen=True, eq=False)
class Fitted:
    """An arm after its trials.

    Attributes
    ----------
    logits
        [n, labels] of all tiles, from pixels or from frozen vectors.
    network
        Gives vectors as they are after adaptation.
    trials
        In the order in which they were run.
    kept
        Which of them is the best; None where all diverged and the network is as it began.
    passes
        Forward passes of a tile, a training step as three, that all of it took.
    seconds
        Of all of it, in this process and in earlier ones that were killed.
    """

    logits: Callable[[Ints], NDArray[np.float32]]
    network: Network
    trials: tuple[Trial, ...]
    kept: int | None
    passes: int
    seconds: float


@plain_dataclass(frozen=True, eq=False)
class ArmTrials:
    """One arm, one seed, one split of patients.

    Attributes
    ----------
    arm, task, search
        What is done with which tiles on which budget.
    network
        That it starts from; it is changed.
    vectors
        [n, d] frozen vectors of that network.
    seed
        Of weights that are drawn, and of batches.
    points
        [trials, 2] from :meth:`Search.points`.
    device
        Where it is trained.
    """

    arm: Arm
    task: Task
    search: Search
    network: Network
    vectors: NDArray[np.float32]
    seed: int
    points: Floats
    device: str

    def fit(self, checkpoint: FitCheckpoint) -> Fitted:
        """Run the trials and keep the best; a state that the checkpoint holds is gone on from."""
        import torch

        found = _State.read(checkpoint)
        began = {"start": time.perf_counter(), "before": found.seconds}
        trials, kept = list(found.trials), found.kept
        if self.arm.trains == "lora":
            add_lora(self.network.model, self.arm.rank, self.seed)
        elif self.arm.trains == "network":
            self.network.model.requires_grad_(True)
        blank = {k: v.clone() for k, v in self.network.model.state_dict().items()}
        model = self._model()
        best = found.best or _copied(model)
        for number in range(len(trials), len(self.points)):
            self.network.model.load_state_dict(blank)
            model = self._model()
            state = _Running(checkpoint, tuple(trials), kept, best, found.now, began)
            found = replace(found, now=None)
            trial = self._run(model, self._trial(number), state)
            if not trial.diverged and (kept is None or trial.score > trials[kept].score):  # type: ignore[operator]
                kept, best = number, _copied(model)
            trials.append(trial)
        model = self._model()
        model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in best.items()})
        model.to(self.device).eval()
        passes = len(self.vectors) + sum(trial.passes for trial in trials)
        return Fitted(
            lambda rows: self._logits(model, rows),
            self.network,
            tuple(trials),
            kept,
            passes,
            found.seconds + time.perf_counter() - began["start"],
        )

    @property
    def _of_vectors(self) -> bool:
        return self.arm.trains == "head"

    def _trial(self, number: int) -> Trial:
        at, decay = self.points[number]
        s = self.search
        return Trial(
            between(s.learning_rates, at),
            between(s.head_learning_rates, at),
            between(s.weight_decays, decay),
        )

    def _head(self) -> torch.nn.Module:
        """The classifier before it is fitted.

        Vectors of a pretrained or frozen network are standardised; a network that is trained from
        drawn weights has no spread yet that would mean anything.
        """
        import torch

        from pathfm_kedro.encoders.architectures import classifier

        fixed = self.arm.start == "encoder" or self._of_vectors
        scale = torch.from_numpy(self.vectors[self.task.train]) if fixed else None
        width = self.vectors.shape[1]
        hidden = max(width // 4, 1) if self.arm.hidden else 0
        return classifier(width, self.task.n_labels, self.seed, hidden, scale)

    def _model(self) -> torch.nn.Module:
        from pathfm_kedro.encoders.architectures import AdaptedNetwork, PooledNetwork

        if self._of_vectors:
            return self._head()
        backbone = PooledNetwork(self.network.model, self.network.pooling)
        return AdaptedNetwork(backbone, self._head(), self.arm.trains == "lora")

    def _run(self, model: Any, trial: Trial, state: FitCheckpoint) -> Trial:
        """Fit the model in place."""
        try:
            if self.arm.probe_first:
                self._fit(model.classifier, trial, None, of_vectors=True)
            history = self._fit(model, trial, state, of_vectors=self._of_vectors)
        except DivergedError:
            return trial
        if not np.isfinite(history.scores).all():
            return trial
        logits = self._logits(model, self.task.inner)
        truth = self.task.targets[self.task.inner]
        right = np.bincount(truth[logits.argmax(axis=1) == truth], minlength=self.task.n_labels)
        there = np.bincount(truth, minlength=self.task.n_labels)
        epochs = len(history.losses)
        each = self.arm.passes_of_step * len(self.task.train)
        each += 0 if self._of_vectors else len(self.task.inner)
        return replace(
            trial,
            score=max(history.scores),
            accuracy=float(balanced_accuracy(right.astype(float), there.astype(float))),
            epochs=epochs,
            passes=epochs * each,
        )

    def _fit(
        self, model: Any, trial: Trial, state: FitCheckpoint | None, *, of_vectors: bool
    ) -> History:
        import torch

        model.to(self.device)
        task, search = self.task, self.search
        targets, n = task.targets[task.train], len(task.train)
        loss = classification_loss(
            lambda rows, rng: self._inputs(task.train[rows], of_vectors, rng),
            targets,
            class_weights(targets, task.n_labels),
        )

        def batches(epoch: int) -> Iterator[Batch]:
            # A batch of one has no variance to normalise by.
            return shuffled_batches(n, search.batch, self.seed, epoch, least=min(2, n))

        def score(model: Any) -> float:
            truth = torch.from_numpy(task.targets[task.inner])
            logits = torch.from_numpy(self._logits(model, task.inner, of_vectors))
            losses = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
            each = [
                float(losses[truth == int(label)].mean())
                for label in np.unique(task.targets[task.inner])
            ]
            return -float(np.mean(each))

        head = [p for n, p in model.named_parameters() if not n.startswith("backbone.")]
        rest = [
            p for n, p in model.named_parameters() if n.startswith("backbone.") and p.requires_grad
        ]
        groups = [{"params": head, "lr": trial.head_rate}]
        groups += [{"params": rest, "lr": trial.rate}] if rest else []
        optimiser = torch.optim.AdamW(groups, weight_decay=trial.decay)
        epochs = search.head_epochs if of_vectors else search.epochs
        recipe = Recipe(epochs, self.seed, "cosine", search.patience)
        return fit(model, optimiser, batches, loss, recipe, score, state)

    def _inputs(
        self, rows: Ints, of_vectors: bool, rng: np.random.Generator | None = None
    ) -> torch.Tensor:
        """What the model is shown of some tiles; pixels that train are turned and mirrored."""
        import torch

        if of_vectors:
            return torch.from_numpy(self.vectors[rows]).to(self.device)
        pixels = self.task.pixels[rows]
        shown = pixels if rng is None else turned(pixels, rng)
        return self.network.prepared(torch.from_numpy(shown).to(self.device))

    def _logits(
        self, model: Any, rows: Ints, of_vectors: bool | None = None
    ) -> NDArray[np.float32]:
        vectors = self._of_vectors if of_vectors is None else of_vectors
        return outputs(model, lambda at: self._inputs(rows[at], vectors), len(rows))


def _copied(model: torch.nn.Module) -> Tensors:
    """Weights of a model that goes on being trained."""
    return {name: value.copy() for name, value in weights_of(model).items()}


@plain_dataclass(frozen=True)
class _State:
    """What a checkpoint holds of a search.

    Attributes
    ----------
    trials, kept
        That are done, and the best of them.
    best
        Weights of the best; empty where there is none.
    now
        State of the trial that was running.
    seconds
        That were spent.
    """

    trials: tuple[Trial, ...] = ()
    kept: int | None = None
    best: Tensors | None = None
    now: tuple[Tensors, str] | None = None
    seconds: float = 0.0

    @classmethod
    def read(cls, checkpoint: FitCheckpoint) -> _State:
        found = checkpoint.load()
        if found is None:
            return cls()
        tensors, text = found
        read = json.loads(text)
        kept, now = (tensors_below(tensors, beginning) for beginning in (_KEPT, _NOW))
        trials = tuple(Trial(**trial) for trial in read["trials"])
        return cls(trials, read["kept"], kept, (now, read["now"]), read["seconds"])


@plain_dataclass(frozen=True, eq=False)
class _Running:
    """The checkpoint of one trial, kept together with what the search has found before."""

    outer: FitCheckpoint
    trials: tuple[Trial, ...]
    kept: int | None
    best: Tensors
    begun: tuple[Tensors, str] | None
    clock: Mapping[str, float]

    def load(self) -> tuple[Tensors, str] | None:
        """The state of this trial."""
        return self.begun

    def save(self, tensors: Tensors, text: str) -> None:
        """Replace the state of this trial."""
        described = {
            "trials": [asdict(trial) for trial in self.trials],
            "kept": self.kept,
            "now": text,
            "seconds": self.clock["before"] + time.perf_counter() - self.clock["start"],
        }
        whole = {f"{_KEPT}{name}": value for name, value in self.best.items()}
        whole |= {f"{_NOW}{name}": value for name, value in tensors.items()}
        self.outer.save(whole, json.dumps(described, sort_keys=True))
