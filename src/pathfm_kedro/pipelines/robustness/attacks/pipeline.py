"""Attacks: every network is attacked, and what is made against one is shown to the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

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
    no_adversarial_probes,
)
from pathfm_kedro.pipelines.robustness.adversarial_transfer import transfer_work
from pathfm_kedro.pipelines.robustness.adversarial_universal import plan_universal_perturbation
from pathfm_kedro.pipelines.robustness.adversarial_views import attack_work
from pathfm_kedro.pipelines.robustness.examples import adversarial_examples
from pathfm_kedro.pipelines.robustness.probed_tiles import plan_probed, plan_through_base
from pathfm_kedro.wiring import (
    Experiment,
    TileGrids,
    collected_by_encoder,
    encoder_nodes,
    grouped,
    in_grids,
    named_partial,
    node,
    shown_as,
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


def attacked_encoders(
    encoders: Sequence[str],
    bases: Mapping[str, str],
    parameters: Mapping[str, Any],
    grids: TileGrids,
) -> list[str]:
    """Encoders that are attacked: there are pixels, and variants only where the parameters say so."""
    of_variants = (parameters.get(ATTACKED.name) or {}).get("harmonised", Adversarial.harmonised)
    left_out = {*grids.without_pixels, *(() if of_variants else bases)}
    return [e for e in encoders if e not in left_out]


def examples_of_attacks(encoder: str) -> str:
    """Dataset of an encoder's tiles that an attack turns."""
    return f"examples.{ATTACKED.name}.{encoder}"


def adversarial_pipeline(
    encoders: Sequence[str],
    attacked: Sequence[str],
    controls: Sequence[str],
    bases: Mapping[str, str],
    grids: TileGrids | None = None,
) -> Pipeline:
    """Attacks on every network, and what is made against one shown to the others.

    Parameters
    ----------
    encoders, attacked
        All encoders of the cohort, and :func:`attacked_encoders`.
    controls
        Those that show others nothing, and of whose tiles there are no examples.
    bases
        Of each harmonised variant the encoder that it is attacked through; it shows others nothing that
        this one does not.
    grids
        Which tiles each encoder has vectors of.
    """
    x, block = ATTACKED.name, f"params:{ATTACKED.name}"
    grids = grids or TileGrids()

    def step(function, inputs, output, called, /, *tags, **bound) -> Node:  # type: ignore[no-untyped-def]
        run = named_partial(with_parameters(Adversarial, x, function), **bound)
        return node(run, [*inputs, block], output, name=called, tags=[x, *tags])

    def job(e: str) -> list[str]:
        network = f"params:encoders.{bases.get(e, e)}"
        return ["slide_files", "params:tile", "params:engine", network, "encoder_runtimes"]

    def probe_of(e: str) -> str:
        return f"probes.{x}.{e}"

    def on_network(
        e: str,
        work: Callable[..., Any],
        beside: Sequence[str],
        output: str,
        called: str,
        title: str,
    ) -> Node:
        """Work on attacked tiles; a variant's by the network of the encoder whose vectors it takes."""
        plan, inputs = plan_probed, [grids.dataset("adversarial_pool", e), probe_of(e), *job(e)]
        if e in bases:
            plan = named_partial(plan_through_base, base=bases[e])
            inputs = [f"embeddings.{bases[e]}", f"params:encoders.{e}", *inputs]
        run = shown_as(named_partial(plan, name=e, work=work, title=title), work)
        return node(run, ["slides", *inputs, *beside], output, name=called, tags=[x, e])

    def attacks_on(e: str) -> list[Node]:
        pool, probe, attacks = grids.dataset("adversarial_pool", e), probe_of(e), f"views.{x}.{e}"
        universal = f"views.{x}_universal.{bases.get(e, e)}"
        vectors = ["slides", grids.dataset("tiles", e), f"embeddings.{e}", pool]
        fit = step(
            plan_universal_perturbation,
            ["slides", pool, *job(e)],
            universal,
            "universal_perturbation",
            e,
            name=e,
        )
        turned = node(
            named_partial(adversarial_examples, name=e),
            [attacks, pool, probe, block],
            examples_of_attacks(e),
            name="examples",
            tags=[x, e],
        )
        work = with_parameters(Adversarial, x, attack_work)
        return [
            step(fit_adversarial_probes, vectors, probe, "probes", e),
            *([] if e in bases else [fit]),
            on_network(e, work, [universal, block], attacks, "attacks", "attacking"),
            *([] if e in controls else [turned]),
        ]

    def of_encoder(e: str) -> list[Node]:
        if e not in attacked:
            nothing = replace(ATTACKED, accumulate=no_adversarial_statistics)
            missing = grids.without_pixels.get(e, "")
            # A cohort in which nothing is attacked has a folder of probes all the same.
            probes = step(no_adversarial_probes, [], probe_of(e), "probes", e)
            return [probes, *encoder_nodes("robustness", nothing, e, grids, missing)]
        # What was made against another encoder are tiles of the same grid.
        others = (s for s in attacked if s not in {e, *controls, *bases})
        sources = tuple(s for s in others if grids.grid(s) == grids.grid(e))
        transfer, made = f"views.{x}_transfer.{e}", [f"views.{x}.{s}" for s in sources]
        work = named_partial(transfer_work, sources=sources)
        accumulate = named_partial(adversarial_statistics, sources=sources)
        measured = [f"views.{x}.{e}", transfer, grids.dataset("adversarial_pool", e), probe_of(e)]
        of_attacks = replace(ATTACKED, accumulate=accumulate, inputs=measured)
        return [
            on_network(e, work, made, transfer, "transfer", "showing adversarial tiles to"),
            *encoder_nodes("robustness", of_attacks, e),
        ]

    # A namespace of their own: each encoder is shown what was made against the others.
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
