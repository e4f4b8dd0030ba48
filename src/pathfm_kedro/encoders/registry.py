"""From a spec to an encoder ready to embed, loaded once per process."""

from __future__ import annotations

import threading
from dataclasses import replace

from pathfm_kedro.encoders.base import Encoder
from pathfm_kedro.encoders.controls import CONTROLS
from pathfm_kedro.encoders.spec import EncoderSpec

_lock = threading.Lock()
_loaded: dict[str, Encoder] = {}
#: Networks kept at a time: pipelines embed one encoder after the other. Controls hold no memory, and
#: must not push out a network that is asked for again after them: loading it takes seconds.
_MAX_LOADED = 2
_networks: list[str] = []


def load_encoder(spec: EncoderSpec) -> Encoder:
    """The encoder of a spec; a second call in the same process gives the same object.

    Raises
    ------
    ValueError
        If the model is unknown or its weights cannot be had.

    Examples
    --------
    >>> load_encoder(EncoderSpec("stain", "control:stain_statistics")).fingerprint[:4]
    '62da'
    """
    with _lock:
        key = spec.key()
        if key not in _loaded:
            while spec.has_network and len(_networks) >= _MAX_LOADED:
                _loaded.pop(_networks.pop(0), None)
            _loaded[key] = _load(spec)
            if spec.has_network:
                _networks.append(key)
        return _loaded[key]


def load_anew(spec: EncoderSpec, seed: int) -> Encoder:
    """The encoder of a spec, taken from nowhere but its weights.

    Parameters
    ----------
    spec
        The encoder.
    seed
        Of torch's random numbers meanwhile: what is loaded from a file does not depend on it.

    Raises
    ------
    ValueError
        As :func:`load_encoder`.
    """
    if not spec.has_network:
        return _load(spec)
    import torch

    from pathfm_kedro.encoders.torch_encoder import forget_networks

    forget_networks()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _load(spec)


def _load(spec: EncoderSpec) -> Encoder:
    kind, _, name = spec.model.partition(":")
    if spec.base:
        raise ValueError(
            f"encoders.{spec.name} has no pixels of its own: its vectors are those of {spec.base} "
            "with the center taken out, made by the pipelines"
        )
    if spec.features:
        raise ValueError(
            f"encoders.{spec.name} cannot be run: of '{spec.model}' there are vectors, and not the "
            "encoder that made them"
        )
    if spec.mitigation is not None:
        from pathfm_kedro.encoders.mitigated import MitigatedEncoder

        return MitigatedEncoder(_load(replace(spec, mitigation=None)), spec.mitigation)
    if kind == "control":
        declared = {"dimension": spec.dimension, "seed": spec.seed} if name == "noise" else {}
        return CONTROLS[name](**{k: v for k, v in declared.items() if v is not None})
    from pathfm_kedro.encoders.torch_encoder import load_torch_encoder

    return load_torch_encoder(spec)
