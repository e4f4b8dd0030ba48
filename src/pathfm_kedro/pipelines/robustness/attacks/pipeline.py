"""Attacks: every network is attacked, and what is made against one is shown to the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.pipelines.robustness.adversarial import (
    adversarial_figures,
    adversarial_statistics,
    no_adversarial_statistics,
)
from pathfm_kedro.pipelines.robustness.adversarial_pool import (
    Adversarial,
    choose_adversarial_pool,
    fit_adversarial_probes,
)
from pathfm_kedro.pipelines.robustness.adversarial_universal import plan_universal_perturbation
from pathfm_kedro.pipelines.robustness.adversarial_views import plan_attacks, plan_transfer
from pathfm_kedro.wiring import (
    Experiment,
    TileGrids,
    collected_by_encoder,
    encoder_nodes,
    grouped,
    in_grids,
    named_partial,
    node,
    with_parameters,
)

#: What is attacked; which views are measured depends on the encoder.
ATTACKED = Experiment(
    "adversarial",
    Adversarial,
    adversarial_statistics,
    adversarial_figures,
    [],
    beside=["params:encoders.{e}"],
)


def adversarial_pipeline(
    encoders: Sequence[str],
    controls: Sequence[str],
    bases: Mapping[str, str],
    grids: TileGrids | None = None,
) -> Pipeline:
    """Attacks on every network, and what is made against one shown to the others."""
    x, block = ATTACKED.name, f"params:{ATTACKED.name}"
    grids = grids or TileGrids()
    #: Harmonised variants are no single network, and of some encoders there are vectors alone.
    not_attacked = {*bases, *grids.without_pixels}

    def step(function, inputs, output, called, /, *tags, **bound) -> Node:  # type: ignore[no-untyped-def]
        run = named_partial(with_parameters(Adversarial, x, function), **bound)
        return node(run, [*inputs, block], output, name=called, tags=[x, *tags])

    def job(e: str) -> list[str]:
        pixels = ["slide_files", "params:tile", "params:engine", f"params:encoders.{e}"]
        return [*pixels, "encoder_runtimes"]

    def probe_of(e: str) -> str:
        return f"probes.{x}.{e}"

    def attacks_on(e: str) -> list[Node]:
        pool, universal = grids.dataset("adversarial_pool", e), f"views.{x}_universal.{e}"
        probe = probe_of(e)
        vectors = ["slides", grids.dataset("tiles", e), f"embeddings.{e}", pool]
        return [
            step(fit_adversarial_probes, vectors, probe, "probes", e),
            step(
                plan_universal_perturbation,
                ["slides", pool, *job(e)],
                universal,
                "universal_perturbation",
                e,
                name=e,
            ),
            step(
                plan_attacks,
                ["slides", pool, probe, universal, *job(e)],
                f"views.{x}.{e}",
                "attacks",
                e,
                name=e,
            ),
        ]

    def of_encoder(e: str) -> list[Node]:
        if e in not_attacked:
            nothing = replace(ATTACKED, accumulate=no_adversarial_statistics)
            missing = grids.without_pixels.get(e, "")
            return encoder_nodes("robustness", nothing, e, grids, missing)
        # What was made against another encoder are tiles of the same grid.
        others = (s for s in encoders if s not in {e, *controls, *not_attacked})
        sources = tuple(s for s in others if grids.grid(s) == grids.grid(e))
        shown = named_partial(plan_transfer, name=e, sources=sources)
        pool = grids.dataset("adversarial_pool", e)
        inputs = ["slides", pool, probe_of(e), *job(e)]
        inputs += [f"views.{x}.{s}" for s in sources]
        measured = [f"views.{x}.{e}", f"views.{x}_transfer.{e}", pool, probe_of(e)]
        accumulate = named_partial(adversarial_statistics, sources=sources)
        attacked = replace(ATTACKED, accumulate=accumulate, inputs=measured)
        return [
            node(shown, inputs, f"views.{x}_transfer.{e}", name="transfer", tags=[x, e]),
            *encoder_nodes("robustness", attacked, e),
        ]

    # A namespace of their own: each encoder is shown what was made against the others.
    attacked = [e for e in encoders if e not in not_attacked]
    attacks = grouped("attacks", [grouped(e, attacks_on(e)) for e in attacked])

    def pool_in(named: Callable[[str], str]) -> Node:
        inputs = ["slides", named("tiles")]
        return step(choose_adversarial_pool, inputs, named("adversarial_pool"), "pool")

    own = [grouped(e, of_encoder(e)) for e in encoders]
    return grouped(
        x,
        [
            *in_grids(pool_in, encoders, grids),
            attacks,
            *own,
            collected_by_encoder("robustness", x, encoders),
        ],
    )
