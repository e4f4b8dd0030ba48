"""The training loop of everything that is fitted on a cohort: rivals, heads, arms with noise.

One epoch after the other, each a pass over the batches that the caller gives; what a batch and a loss
are is the caller's. Everything random comes from the seed and the epoch's number, so that a fit gives
the same bytes on a CPU whenever and however often it was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from pathfm_kedro.encoders.batches import shuffled_batches
from pathfm_kedro.encoders.draws import kept_apart, set_seed
from pathfm_kedro.encoders.fabric import fabric_on
from pathfm_kedro.encoders.runtimes import exact_convolutions
from pathfm_kedro.engine.jobs import FitCheckpoint
from pathfm_kedro.engine.threads import one_thread
from pathfm_kedro.statistics.parameters import STRICT

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

Ints = NDArray[np.int64]
Tensors = dict[str, NDArray[np.generic]]
#: Rows of a batch, and the generator that its augmentation draws from.
Batch = tuple[Ints, np.random.Generator]
#: Parts of a checkpoint, by the beginning of the names of their tensors.
_MODEL, _BEST, _OPTIMISER = "model.", "best.", "optimiser."


class DivergedError(ValueError):
    """A loss that is not finite."""


@dataclass(frozen=True)
class History:
    """How a fit went.

    Attributes
    ----------
    losses
        Mean loss over the batches of each epoch.
    scores
        What `validate` gave after each epoch, higher is better; empty without it.
    best_epoch
        Epochs after which the score was highest, the first of equals; all of them without a score.
    """

    losses: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    best_epoch: int = 0

    def ended(self, epochs: int, patience: int | None) -> bool:
        """Whether all epochs are done, or the score has not risen for so many of them."""
        done = len(self.losses)
        return done >= epochs or (patience is not None and done - self.best_epoch >= patience)


@dataclass(frozen=True)
class Recipe:
    """How long and how fast, whatever is fitted.

    Attributes
    ----------
    epochs
        At most.
    seed
        Of what layers draw at random; batches take theirs from the caller.
    schedule
        Of the learning rate: ``constant``, or ``cosine`` from the given rate to nothing at the last
        epoch.
    patience
        Epochs without a better score after which the fit ends early; None runs them all. The weights
        of the best epoch are kept in either case.
    """

    epochs: int
    seed: int
    schedule: str = "constant"
    patience: int | None = None

    def rate(self, epoch: int) -> float:
        """Factor of the learning rate in an epoch, from 0.

        Examples
        --------
        >>> [round(Recipe(4, 0, "cosine").rate(epoch), 3) for epoch in range(4)]
        [1.0, 0.854, 0.5, 0.146]
        """
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            return float((1 + np.cos(np.pi * epoch / self.epochs)) / 2)
        raise ValueError(f"schedule is '{self.schedule}': give constant or cosine")


def fit(
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Callable[[int], Iterable[Any]],
    loss: Callable[[Any, Any], torch.Tensor],
    recipe: Recipe,
    validate: Callable[[Any], float] | None = None,
    checkpoint: FitCheckpoint | None = None,
) -> History:
    """Fit a model in place; it ends in evaluation mode with the weights of its best epoch.

    Parameters
    ----------
    model
        On its device, its weights as they begin.
    optimiser
        Of the model's parameters.
    batches
        From the epoch's number to its batches; the same number must give the same batches.
    loss
        Of the model and a batch, a scalar.
    recipe
        Epochs, seed, schedule and patience.
    validate
        Gives a score of the model, in evaluation mode and without gradients; higher is better.
    checkpoint
        Where the state is left after each epoch; a state that is found there is gone on from.

    Raises
    ------
    DivergedError
        If the loss of an epoch is not finite.
    """
    rates = [group["lr"] for group in optimiser.param_groups]
    history, best = _resumed(model, optimiser, checkpoint)
    fabric = fabric_on(next(model.parameters()).device.type)
    devices = [] if fabric.device.index is None else [fabric.device.index]
    with one_thread(), kept_apart(devices), exact_convolutions(fabric.device.type):
        while not history.ended(recipe.epochs, recipe.patience):
            epoch = len(history.losses)
            set_seed(
                int(np.random.SeedSequence([recipe.seed, epoch]).generate_state(1)[0]), devices
            )
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * recipe.rate(epoch)
            mean = _one_epoch(fabric, model, optimiser, batches(epoch), loss)
            if not np.isfinite(mean):
                raise DivergedError(
                    f"the loss of epoch {epoch + 1} is {mean}: lower the learning rate"
                )
            history = replace(history, losses=(*history.losses, mean))
            history, best = _judged(model, validate, history, best)
            if checkpoint is not None:
                checkpoint.save(*_state(model, optimiser, history, best))
    if best:
        model.load_state_dict(best)
    model.eval()
    return history


@checked_dataclass(frozen=True, config=STRICT)
class AdamWSettings:
    """AdamW on shuffled batches, its rate falling to nothing along a cosine.

    Attributes
    ----------
    epochs
        Passes over what is learnt from.
    batch
        Rows of a step.
    learning_rate, weight_decay
        Of AdamW.
    """

    epochs: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]

    def fit(
        self,
        model: torch.nn.Module,
        n: int,
        loss: Callable[[Any, Batch], torch.Tensor],
        seed: int,
        checkpoint: FitCheckpoint | None = None,
        *,
        validate: Callable[[Any], float] | None = None,
        patience: int | None = None,
        least: int = 1,
    ) -> History:
        """:func:`fit` a model to n rows.

        Two fits of a seed see the same rows in the same order.

        Parameters
        ----------
        model
            On its device, its weights as they begin.
        n
            Rows.
        loss
            Of the model and a batch, a scalar.
        seed
            Of the batches and of layers that draw.
        checkpoint, validate
            As of :func:`fit`.
        patience
            As of :class:`Recipe`.
        least
            Rows of a batch.
        """
        import torch

        learnt = [weight for weight in model.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(learnt, lr=self.learning_rate, weight_decay=self.weight_decay)

        def batches(epoch: int) -> Iterable[Batch]:
            return shuffled_batches(n, self.batch, seed, epoch, least)

        recipe = Recipe(self.epochs, seed, "cosine", patience)
        return fit(model, optimiser, batches, loss, recipe, validate, checkpoint)


def classification_loss(
    inputs: Callable[[Ints, np.random.Generator], torch.Tensor],
    targets: Ints,
    weight: torch.Tensor | None = None,
) -> Callable[[Any, Batch], torch.Tensor]:
    """Cross-entropy of a batch.

    Parameters
    ----------
    inputs
        From rows and the generator of their augmentation to what the model takes.
    targets
        [n] classes of all rows.
    weight
        Of each class; None for all alike.
    """
    import torch

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        logits = model(inputs(*batch))
        truth = torch.from_numpy(targets[batch[0]]).to(logits.device)
        own = None if weight is None else weight.to(logits.device)
        return torch.nn.functional.cross_entropy(logits, truth, own)

    return loss


def class_weights(targets: Ints, n_labels: int) -> torch.Tensor:
    """[n_labels] float32 by which classes count equally.

    Examples
    --------
    >>> class_weights(np.array([0, 0, 0, 1]), 2).tolist()
    [0.6666666865348816, 2.0]
    """
    import torch

    counts = np.bincount(targets, minlength=n_labels)
    return torch.tensor(len(targets) / (n_labels * np.maximum(counts, 1)), dtype=torch.float32)


def _one_epoch(
    fabric: Fabric,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], torch.Tensor],
) -> float:
    """Mean loss over the batches."""
    model.train()
    losses = []
    for batch in batches:
        optimiser.zero_grad()
        with fabric.autocast():
            value = loss(model, batch)
        fabric.backward(value)
        optimiser.step()
        losses.append(value.detach())
    return float(np.mean([float(value) for value in losses]))


def _judged(
    model: torch.nn.Module,
    validate: Callable[[Any], float] | None,
    history: History,
    best: dict[str, torch.Tensor],
) -> tuple[History, dict[str, torch.Tensor]]:
    """The history with the epoch's score, and the weights of the best epoch; none without a score."""
    import torch

    epoch = len(history.losses)
    if validate is None:
        return replace(history, best_epoch=epoch), {}
    model.eval()
    with torch.no_grad():
        score = float(validate(model))
    scores = (*history.scores, score)
    if history.best_epoch and score <= max(history.scores):
        return replace(history, scores=scores), best
    kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return replace(history, scores=scores, best_epoch=epoch), kept


def _state(
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    history: History,
    best: Mapping[str, torch.Tensor],
) -> tuple[Tensors, str]:
    """Everything that the next epoch depends on, as plain arrays."""
    named = {f"{_MODEL}{name}": value for name, value in model.state_dict().items()}
    named |= {f"{_BEST}{name}": value for name, value in best.items()}
    for place, entry in optimiser.state_dict()["state"].items():
        named |= {f"{_OPTIMISER}{place}.{key}": value for key, value in entry.items()}
    tensors = {name: value.detach().cpu().numpy().copy() for name, value in named.items()}
    return tensors, json.dumps(asdict(history), sort_keys=True)


def _resumed(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer, checkpoint: FitCheckpoint | None
) -> tuple[History, dict[str, torch.Tensor]]:
    """Put the state of a checkpoint into model and optimiser."""
    import torch

    found = None if checkpoint is None else checkpoint.load()
    if found is None:
        return History(), {}
    tensors, text = found

    def part(beginning: str) -> dict[str, torch.Tensor]:
        below = tensors_below(tensors, beginning).items()
        return {name: torch.from_numpy(np.array(value)) for name, value in below}

    model.load_state_dict(part(_MODEL))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in part(_OPTIMISER).items():
        place, _, key = name.partition(".")
        state.setdefault(int(place), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    read = json.loads(text)
    history = History(tuple(read["losses"]), tuple(read["scores"]), read["best_epoch"])
    return history, part(_BEST)


def tensors_below(tensors: Tensors, beginning: str) -> Tensors:
    """Those whose names begin so, by the rest of their names.

    Examples
    --------
    >>> tensors_below({"best.a": np.zeros(1), "model.a": np.ones(1)}, "best.")
    {'a': array([0.])}
    """
    return {
        name.removeprefix(beginning): value
        for name, value in tensors.items()
        if name.startswith(beginning)
    }


def weights_of(model: torch.nn.Module) -> Tensors:
    """A model's weights as plain arrays, by name."""
    return {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}


@dataclass
class InMemory:
    """A checkpoint that lasts as long as the process; for trying out and for tests.

    Attributes
    ----------
    saved
        What was saved last.
    """

    saved: tuple[Tensors, str] | None = field(default=None)

    def load(self) -> tuple[Tensors, str] | None:
        """What was saved last."""
        return self.saved

    def save(self, tensors: Tensors, text: str) -> None:
        """Keep it."""
        self.saved = tensors, text
