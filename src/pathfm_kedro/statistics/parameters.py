"""Parameters of an experiment: read once into a frozen dataclass whose types are the checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.bootstrap import bootstrap_weights
from pathfm_kedro.statistics.figures import Criterion

#: How a dataclass of parameters is declared: ``@dataclass(frozen=True, config=STRICT)``.
STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True, defer_build=True)

T = TypeVar("T", bound="ExperimentParameters")

_Criterion = Annotated[
    Criterion,
    BeforeValidator(
        lambda entry: entry if isinstance(entry, Criterion) else Criterion.parse(entry)
    ),
]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Calibration:
    """How an experiment is calibrated where the truth is known.

    Attributes
    ----------
    nuisance
        The control that is mixed into the truth; empty where the experiment makes its own nuisance.
    called
        What that control knows, for the reader.
    set
        Parameters of the experiment that are changed so that many doses take seconds.
    reads
        ``{metric, at}`` of the figures that are shown where none is judged.
    """

    called: str
    nuisance: str = ""
    set: Mapping[str, Any] = Field(default_factory=dict)
    reads: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ExperimentParameters:
    """Parameters that every experiment has.

    Attributes
    ----------
    criteria
        What is judged; see :class:`~pathfm_kedro.statistics.figures.Criterion`.
    draws
        Bootstrap draws over patients.
    seed
        Of everything that is random.
    calibration
        How the experiment is calibrated; None for not at all.
    """

    criteria: tuple[_Criterion, ...] = ()
    draws: Annotated[int, Field(ge=1)] = 2000
    seed: int = 0
    calibration: Calibration | None = None

    def weights(self, n_patients: int) -> NDArray[np.float64]:
        """[draws, n_patients] of the bootstrap; the same for every figure of so many patients."""
        return bootstrap_weights(n_patients, self.draws, self.seed)


def read_parameters(kind: type[T], name: str, parameters: Mapping[str, Any]) -> T:
    """Read and check the parameters of an experiment.

    Parameters
    ----------
    kind
        The dataclass; its annotations say what is allowed.
    name
        The experiment, for the message.
    parameters
        The block of that name.

    Raises
    ------
    ValueError
        Naming every key that is missing, unknown or not allowed, and its value.

    Examples
    --------
    >>> read_parameters(ExperimentParameters, "rotation", {"draws": 100, "seed": 1}).draws
    100
    >>> read_parameters(ExperimentParameters, "rotation", {"draw": 100})
    Traceback (most recent call last):
    ...
    ValueError: rotation.draw: no such parameter (100); known are calibration, criteria, draws, seed
    """
    try:
        return TypeAdapter(kind).validate_python(dict(parameters))
    except ValidationError as error:
        known = ", ".join(sorted(kind.__dataclass_fields__))
        raise ValueError("; ".join(_described(name, e, known) for e in error.errors())) from None


def _described(name: str, error: Any, known: str) -> str:
    place = ".".join([name, *map(str, error["loc"])])
    if error["type"] == "unexpected_keyword_argument":
        return f"{place}: no such parameter ({error['input']!r}); known are {known}"
    if error["type"] == "missing":
        return f"{place} is missing: write it into the parameters"
    reason = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:  # of the whole block, which would be long to show
        return f"{name}: {reason}"
    return f"{place} is {error['input']!r}: {reason}"
