"""TorchScript archives, which hold a program beside its weights.

PyTorch's interpreter runs that program. It reaches no Python, yet it may read and write files, so an
archive is opened only where its entry declares the digest of the file that its owner trusts.
"""

from __future__ import annotations

import warnings

import torch

from pathfm_kedro.encoders.loaders.files import checked_file, digest_of_file, one_line
from pathfm_kedro.encoders.loaders.tower import NO_TOKENS, Patches, Tower, declared
from pathfm_kedro.encoders.runtimes import PoolingError
from pathfm_kedro.encoders.spec import EncoderSpec


class ScriptedNetwork(Tower):
    """A program of TorchScript that gives vectors [n, d]."""

    #: A traced program may hold the size of its input anywhere.
    fixed_input = True

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Vectors [n, d]."""
        vectors = self.tower(batch)
        if not isinstance(vectors, torch.Tensor):
            raise PoolingError(
                f"the archive gives a {type(vectors).__name__}: script a module that gives one tensor "
                "[n, d]"
            )
        return vectors


def load(spec: EncoderSpec) -> torch.nn.Module:
    """The network of ``torchscript:<file>``.

    Raises
    ------
    ValueError
        If the digest is not declared, or the file is no such archive; it names the mend.
    """
    where = f"encoders.{spec.name}"
    path = checked_file(spec, spec.model.partition(":")[2], "model")
    digest = digest_of_file(path)
    if spec.sha256 is None:
        raise ValueError(
            f"{where}.model is '{spec.model}': a TorchScript archive is a program and may read and "
            f"write files, so if you trust where it comes from write {where}.sha256: {digest}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch advises against making new archives.
            network = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        # A file of another kind raises what its reader happens to run into.
        raise ValueError(
            f"{where}.model is '{spec.model}', which is cut short or no TorchScript archive "
            f"({one_line(error, 100)}): download it again; weights alone go into {where}.checkpoint "
            "with timm:<architecture>"
        ) from error
    described = declared(spec.input_pixels, spec.mean or (), spec.std or ())
    return ScriptedNetwork(network, NO_TOKENS, Patches(1, spec.input_pixels), described, digest)
