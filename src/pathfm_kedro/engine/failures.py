"""How many slides a run may lose."""

from __future__ import annotations

from collections.abc import Mapping

from pathfm_kedro.engine.settings import EngineSettings


class TooManyFailedError(RuntimeError):
    """More slides failed than a run may lose."""


def refuse_too_many_failed(reasons: Mapping[str, str], total: int, engine: EngineSettings) -> None:
    """End the run where more slides failed than the engine's settings allow.

    Parameters
    ----------
    reasons
        Reason of every slide that failed.
    total
        Slides that were tried.
    engine
        ``max_failed_share``.

    Raises
    ------
    TooManyFailedError
        With the number and the first reasons.
    """
    if total and len(reasons) / total > engine.max_failed_share:
        first = "; ".join(f"{slide}: {reason}" for slide, reason in sorted(reasons.items())[:3])
        raise TooManyFailedError(
            f"{len(reasons)} of {total} slides failed, more than engine.max_failed_share = "
            f"{engine.max_failed_share:g} allows. {first}. Mend the cause and run again"
        )
