"""ONNX files: onnxruntime runs them, and no gradient goes through."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pathfm_kedro.encoders.loaders.files import checked_file, digest_of_file, one_line
from pathfm_kedro.encoders.loaders.tower import NO_TOKENS, Patches, Tower, declared
from pathfm_kedro.encoders.runtimes import OnnxForward, open_session
from pathfm_kedro.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class OnnxNetwork(Tower):
    """A graph in onnxruntime that gives vectors [n, d] of a batch [n, 3, side, side].

    Attributes
    ----------
    session
        The open graph.
    tiles
        How many tiles the graph takes at a time.
    """

    #: The graph was exported for one size.
    fixed_input = True
    differentiable = False

    def __init__(self, session: InferenceSession, tiles: int, *args: Any) -> None:
        super().__init__(torch.nn.Identity(), NO_TOKENS, *args)
        self.session = session
        self.tiles = tiles

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Vectors float32 [n, d]."""
        return OnnxForward(self.session, self.tiles)(batch)


def load(spec: EncoderSpec) -> torch.nn.Module:
    """The graph of ``onnx:<file>``.

    Raises
    ------
    ValueError
        If the file is none, reads files outside of its folder, or takes or gives something else than
        tiles and vectors; it names the mend.
    """
    where = f"encoders.{spec.name}.model is '{spec.model}'"
    path = checked_file(spec, spec.model.partition(":")[2], "model")
    try:
        beside = _data_beside(path, where)
        session = open_session(str(path))
    except _OutsideError as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        # A file of another kind raises what its reader happens to run into.
        raise ValueError(
            f"{where}, which is cut short, lacks its data file or is no ONNX file that onnxruntime can "
            f"run ({one_line(error)}): download or export it again"
        ) from error
    tiles = _tiles_at_a_time(session, spec, where)
    digest = hashlib.sha256("".join(map(digest_of_file, [path, *beside])).encode()).hexdigest()
    described = declared(spec.input_pixels, spec.mean or (), spec.std or ())
    return OnnxNetwork(session, tiles, Patches(1, spec.input_pixels), described, digest)


class _OutsideError(ValueError):
    """The graph names a file that does not lie beside it."""


def _data_beside(path: Path, where: str) -> list[Path]:
    """Files that hold the graph's larger tensors, sorted."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    graph = onnx.load(path, load_external_data=False).graph
    named = {ExternalDataInfo(t).location for t in graph.initializer if uses_external_data(t)}
    folder, found = path.parent.resolve(), []
    for location in sorted(named):
        target = (folder / location).resolve()
        if not target.is_relative_to(folder):
            raise _OutsideError(
                f"{where}, which reads its tensors from '{location}', outside of its folder: export it "
                "again with its data beside it"
            )
        found.append(target)
    return found


def _tiles_at_a_time(session: Any, spec: EncoderSpec, where: str) -> int:
    """The graph's batch (1 where it takes any), its input and output checked."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"{where}, which takes {len(inputs)} tensors and gives {len(outputs)} "
            f"({', '.join(x.name for x in (*inputs, *outputs))}): export it with tiles as the one "
            "input and vectors as the one output"
        )
    taken, given = inputs[0], outputs[0]
    shape, side = list(taken.shape), spec.input_pixels
    sides = [size for size in shape[2:] if isinstance(size, int)]
    channels = shape[1] if len(shape) == 4 else None
    if (
        taken.type != "tensor(float)"
        or (isinstance(channels, int) and channels != 3)
        or not channels
    ):
        raise ValueError(
            f"{where}, which takes {taken.type} of shape {shape}, and tiles are float32 "
            "[n, 3, side, side]: export it so"
        )
    if any(size != side for size in sides):
        raise ValueError(
            f"{where}, which takes tiles of {sides[-1]} px, and encoders.{spec.name}.input_pixels is "
            f"{side}: set it to {sides[-1]}"
        )
    if given.type != "tensor(float)" or len(given.shape) != 2:
        raise ValueError(
            f"{where}, which gives {given.type} of shape {list(given.shape)}, and one float32 vector "
            "per tile [n, d] is needed: export it with its pooling"
        )
    return int(shape[0]) if isinstance(shape[0], int) else 1
