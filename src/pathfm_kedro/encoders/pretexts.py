r"""What a network can be pretrained on: pretext tasks with one interface, one backbone and one budget.

- ``simclr``: two views of a tile are distinguished from the other tiles' views (NT-Xent; Chen et al.
  2020);
- ``dino``: a student predicts what its moving average sees in another view, large or small (Caron
  et al. 2021), with 2 global and 2 local crops;
- ``masked``: pixels of hidden patches are predicted from the others. As in SimMIM (Xie et al. 2022) and
  unlike MAE the hidden patches are grey in the input and one linear layer decodes, so that convolutions
  and transformers are treated alike; the error counts in hidden patches only;
- ``morphology``, ``orientation``: numbers that the caller measured on each tile are predicted; the
  former stay when the tile is turned, the latter change sign with each quarter turn;
- ``supervised``: the label is predicted;
- ``random``: nothing is learnt.

Heads are thrown away: the vectors are the backbone's. Importing this loads torch: do so where it is
used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from pathfm_kedro.encoders.batches import Pixels, outputs, turned
from pathfm_kedro.encoders.draws import drawn_from
from pathfm_kedro.encoders.operations import count_operations, passes_of_task
from pathfm_kedro.encoders.training import AdamWSettings, Batch, History
from pathfm_kedro.engine import FitCheckpoint

#: Of NT-Xent; the value that SimCLR's paper settles on for small batches.
_TEMPERATURE = 0.5
#: DINO's: temperatures of teacher and student, momentum of the center and of the teacher. The published
#: teacher moves slower (0.996), over a hundred times as many steps.
_TEACHER, _STUDENT, _CENTER_MOMENTUM, _TEACHER_MOMENTUM = 0.04, 0.1, 0.9, 0.99
#: Width of the heads' hidden layer, of SimCLR's projection, and DINO's prototypes.
_HIDDEN, _PROJECTION, _PROTOTYPES = 128, 64, 256
#: Share of the tile's area in a view: of the two large ones, and of DINO's small ones.
_GLOBAL, _LOCAL = (0.4, 1.0), (0.1, 0.4)
#: Share of patches that are hidden: SimMIM's.
_HIDDEN_SHARE = 0.6


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of finding a view's partner among all other views of the batch.

    ``−log exp(s_ij/τ) / Σ_{k≠i} exp(s_ik/τ)`` with cosines s, over the 2n views.

    Parameters
    ----------
    first, second
        [n, d] of two views.
    temperature
        τ.

    Examples
    --------
    >>> one = torch.eye(2)
    >>> round(float(nt_xent(one, one, 1.0)), 4)  # ln((e + 2) / e)
    0.5514
    """
    both = functional.normalize(torch.cat([first, second]), dim=1)
    itself = torch.eye(len(both), dtype=torch.bool, device=both.device)
    cosines = (both @ both.T / temperature).masked_fill(itself, -torch.inf)
    partner = torch.arange(len(both), device=both.device).roll(len(first))
    return functional.cross_entropy(cosines, partner)


def self_distillation(
    teacher: torch.Tensor, student: torch.Tensor, center: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy of the student in one view with the teacher in another.

    Parameters
    ----------
    teacher
        [t, n, d] logits of the large views; no gradient flows into them.
    student
        [s, n, d] logits of the same views and then the small ones.
    center
        [d], taken off the teacher's logits, without which one prototype would win everywhere.

    Examples
    --------
    >>> logits = torch.tensor([[[5.0, 0.0]], [[5.0, 0.0]]])
    >>> round(float(self_distillation(logits, logits, torch.tensor([5.0, 0.0]))), 3)  # 0.5 · 50
    25.0
    """
    target = functional.softmax((teacher.detach() - center) / _TEACHER, dim=-1)
    predicted = functional.log_softmax(student / _STUDENT, dim=-1)
    each = -torch.einsum("tnd,snd->ts", target, predicted) / teacher.shape[1]
    other = ~torch.eye(*each.shape, dtype=torch.bool, device=each.device)
    return each[other].mean()


def masked_error(
    predicted: torch.Tensor, images: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """Mean squared error in the hidden patches; the others do not count.

    Parameters
    ----------
    predicted, images
        [n, 3, side, side].
    hidden
        [n, g, g] bool; a patch has side / g pixels along a side.
    """
    patch = images.shape[-1] // hidden.shape[-1]
    where = hidden.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]
    squares = (predicted - images) ** 2 * where
    return squares.sum() / (where.sum() * images.shape[1])


def views(
    pixels: Pixels, rng: np.random.Generator, scale: tuple[float, float] = _GLOBAL
) -> torch.Tensor:
    """Random crops, turned and recoloured: float32 [n, 3, side, side] in 0 … 1.

    Brightness, contrast and saturation change by up to 40%, a fifth loses its colour, as in SimCLR; no
    hue, which would turn haematoxylin into another stain.

    Parameters
    ----------
    pixels
        uint8 [n, side, side, 3].
    rng
        Of everything random.
    scale
        Share of the area that a crop takes.
    """
    n = len(pixels)
    image = _scaled(turned(pixels, rng))
    size = np.sqrt(rng.uniform(*scale, n))
    shift = rng.uniform(-1, 1, (2, n)) * (1 - size)
    theta = np.zeros((n, 2, 3), np.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = size
    theta[:, :, 2] = shift.T
    grid = functional.affine_grid(torch.from_numpy(theta), list(image.shape), align_corners=False)
    image = functional.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    bright, contrast, saturation = (
        torch.from_numpy(rng.uniform(0.6, 1.4, (n, 1, 1, 1)).astype(np.float32)) for _ in range(3)
    )
    saturation[torch.from_numpy(rng.random(n) < 0.2)] = 0.0
    image = image * bright
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    image = mean + contrast * (image - mean)
    grey = image.mean(dim=1, keepdim=True)
    return (grey + saturation * (image - grey)).clamp(0, 1)


class Learner(nn.Module):
    """A backbone with what a task needs beside it.

    Parameters
    ----------
    backbone
        Gives vectors when called; declares ``num_features`` and ``pretrained_cfg``.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        declared = cast(Any, backbone).pretrained_cfg
        # A plain dictionary for networks of this project, an object for those of timm.
        read = declared.get if isinstance(declared, dict) else lambda key: getattr(declared, key)
        for name in ("mean", "std"):
            value = torch.tensor(read(name), dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Images in 0 … 1 as the backbone wants them, on its device."""
        return (images.to(self.mean.device) - self.mean) / self.std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, d] of images in 0 … 1."""
        return cast(torch.Tensor, self.backbone(self.normalised(images)))

    def loss(self, pixels: Pixels, targets: Any, rng: np.random.Generator) -> torch.Tensor:
        """What a step makes smaller."""
        raise NotImplementedError


class _Contrastive(Learner):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.head = _head(backbone, _PROJECTION)

    def loss(self, pixels: Pixels, targets: Any, rng: np.random.Generator) -> torch.Tensor:
        first, second = (self.head(self(views(pixels, rng))) for _ in range(2))
        return nt_xent(first, second, _TEMPERATURE)


class _SelfDistillation(Learner):
    center: torch.Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.head = _head(backbone, _PROTOTYPES)
        self.teacher = copy.deepcopy(nn.Sequential(self.backbone, self.head))
        self.teacher.requires_grad_(False)
        self.register_buffer("center", torch.zeros(_PROTOTYPES))

    def loss(self, pixels: Pixels, targets: Any, rng: np.random.Generator) -> torch.Tensor:
        self._follow()
        large = [self.normalised(views(pixels, rng)) for _ in range(2)]
        small = [self.normalised(views(pixels, rng, _LOCAL)) for _ in range(2)]
        with torch.no_grad():
            taught = torch.stack([self.teacher(view) for view in large])
        learnt = torch.stack([self.head(self.backbone(view)) for view in (*large, *small)])
        value = self_distillation(taught, learnt, self.center)
        self.center = moved_center(self.center, taught)
        return value

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the teacher towards the student as the last step left it."""
        student = nn.Sequential(self.backbone, self.head).parameters()
        for own, new in zip(self.teacher.parameters(), student, strict=True):
            own.lerp_(new, 1 - _TEACHER_MOMENTUM)


def moved_center(center: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """The moving average [d] of the teacher's logits [t, n, d]."""
    return center * _CENTER_MOMENTUM + taught.mean(dim=(0, 1)) * (1 - _CENTER_MOMENTUM)


class _Masked(Learner):
    def __init__(self, backbone: nn.Module, side: int) -> None:
        super().__init__(backbone)
        with torch.no_grad():
            self.grid = feature_map(backbone, torch.zeros(1, 3, side, side)).shape[-1]
        if side % self.grid:
            raise ValueError(
                f"masked needs patches that tile {side} px, and the backbone has {self.grid} along a "
                "side: choose another arms.side"
            )
        self.patch = side // self.grid
        width = cast(Any, backbone).num_features
        self.decoder = nn.Conv2d(width, 3 * self.patch**2, 1)

    def loss(self, pixels: Pixels, targets: Any, rng: np.random.Generator) -> torch.Tensor:
        images = self.normalised(_scaled(turned(pixels, rng)))
        hidden = torch.from_numpy(_hidden(len(pixels), self.grid, rng)).to(images.device)
        shown = ~hidden.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
        found = self.decoder(feature_map(self.backbone, images * shown[:, None]))
        return masked_error(functional.pixel_shuffle(found, self.patch), images, hidden)


class _Regression(Learner):
    def __init__(self, backbone: nn.Module, outputs: int, sign_turns: bool) -> None:
        super().__init__(backbone)
        self.head = nn.Linear(cast(Any, backbone).num_features, outputs)
        self.sign_turns = sign_turns

    def loss(self, pixels: Pixels, targets: Any, rng: np.random.Generator) -> torch.Tensor:
        quarter = rng.integers(4, size=len(pixels))
        images = _scaled(_quarter_turned(pixels, quarter))
        truth = torch.from_numpy(np.asarray(targets, np.float32))
        if self.sign_turns:
            truth = (
                truth * torch.from_numpy(np.where(quarter % 2, -1, 1).astype(np.float32))[:, None]
            )
        return functional.mse_loss(self.head(self(images)), truth.to(self.mean.device))


class _Supervised(Learner):
    def __init__(self, backbone: nn.Module, labels: int) -> None:
        super().__init__(backbone)
        self.head = nn.Linear(cast(Any, backbone).num_features, labels)

    def loss(self, pixels: Pixels, targets: Any, rng: np.random.Generator) -> torch.Tensor:
        logits = self.head(self(_scaled(turned(pixels, rng))))
        return functional.cross_entropy(logits, torch.from_numpy(targets).to(logits.device))


_OF_TASK: dict[str, Callable[[nn.Module, Pixels, Any], Learner]] = {
    "simclr": lambda backbone, pixels, targets: _Contrastive(backbone),
    "dino": lambda backbone, pixels, targets: _SelfDistillation(backbone),
    "masked": lambda backbone, pixels, targets: _Masked(backbone, pixels.shape[1]),
    "morphology": lambda backbone, pixels, targets: _Regression(
        backbone, targets.shape[1], sign_turns=False
    ),
    "orientation": lambda backbone, pixels, targets: _Regression(
        backbone, targets.shape[1], sign_turns=True
    ),
    "supervised": lambda backbone, pixels, targets: _Supervised(backbone, int(targets.max()) + 1),
    "random": lambda backbone, pixels, targets: Learner(backbone),
}
TASKS = tuple(_OF_TASK)


def pretrain(
    backbone: nn.Module,
    task: str,
    pixels: Pixels,
    targets: NDArray[Any],
    settings: AdamWSettings,
    seed: int,
    checkpoint: FitCheckpoint | None = None,
) -> History:
    """Pretrain a backbone in place.

    Parameters
    ----------
    backbone
        As it begins, on its device.
    task
        One of :data:`TASKS`.
    pixels
        uint8 [n, side, side, 3].
    targets
        [n, m] numbers of a regression, [n] codes of labels; not read by the other tasks.
    settings
        The budget, the same for all tasks.
    seed
        Of the head, the batches and the views.
    checkpoint
        Where the state is left after each epoch.

    Raises
    ------
    ValueError
        If there is no tile to learn from, or the loss is not finite.
    """
    if task == "random":
        backbone.eval()
        return History()
    if len(pixels) < 2:
        raise ValueError(
            f"{len(pixels)} tile(s) to pretrain on: add patients, or raise arms.tiles_per_slide"
        )
    device = next(backbone.parameters()).device
    with drawn_from(seed):
        learner = _OF_TASK[task](backbone.cpu(), pixels, targets).to(device)

    def loss(model: Learner, batch: Batch) -> torch.Tensor:
        rows, rng = batch
        return model.loss(pixels[rows], targets[rows], rng)

    return settings.fit(learner, len(pixels), loss, seed, checkpoint)


def frozen_vectors(backbone: nn.Module, pixels: Pixels) -> NDArray[np.float32]:
    """Vectors float32 [n, d] of tiles uint8 [n, side, side, 3]."""
    if not len(pixels):
        return np.zeros((0, cast(Any, backbone).num_features), np.float32)
    learner = Learner(backbone).to(next(backbone.parameters()).device)
    return outputs(learner, lambda rows: _scaled(pixels[rows]), len(pixels))


def operations(backbone: nn.Module, task: str, side: int, n_tiles: int, epochs: int) -> float:
    """Floating-point operations of the backbone in a whole pretraining.

    A backward pass counts as two forward ones; heads, small beside the backbone, do not count.
    """
    if not epochs or not passes_of_task(task):
        return 0.0
    device = next(backbone.parameters()).device
    once = count_operations(backbone, torch.zeros(1, 3, side, side, device=device))
    return float(once) * passes_of_task(task) * n_tiles * epochs


def feature_map(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """[n, d, g, g] before pooling."""
    network = cast(Any, backbone)
    if hasattr(network, "convolutions"):
        return cast(torch.Tensor, network.convolutions(images))
    found: torch.Tensor = network.forward_features(images)
    if found.ndim == 4:
        return found
    tokens = found[:, int(getattr(network, "num_prefix_tokens", 0)) :]
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


def _head(backbone: nn.Module, outputs: int) -> nn.Module:
    width = cast(Any, backbone).num_features
    return nn.Sequential(nn.Linear(width, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, outputs))


def _hidden(n: int, grid: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """[n, grid, grid] patches that are hidden: equally many in every tile."""
    order = rng.random((n, grid * grid)).argsort(axis=1).argsort(axis=1)
    return (order < max(1, round(_HIDDEN_SHARE * grid * grid))).reshape(n, grid, grid)


def _quarter_turned(pixels: Pixels, quarter: NDArray[np.int64]) -> Pixels:
    made = np.empty_like(pixels)
    for each in range(4):
        made[quarter == each] = np.rot90(pixels[quarter == each], each, axes=(1, 2))
    return made


def _scaled(pixels: Pixels) -> torch.Tensor:
    """float32 [n, 3, side, side] in 0 … 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
