"""Whether a verdict depends on how one model's tokens are pooled."""

from __future__ import annotations

from collections.abc import Container, Mapping
from itertools import combinations
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.words import Words
from pathfm_kedro.variants import variant_name

_CHECK = ["experiment", "metric", "stratum", "setting"]
_DECIDED = ("pass", "fail")


def pooling_variants(cards: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Variants of each model that has several, by the entry's name: encoder by pooling.

    Parameters
    ----------
    cards
        Of the encoders, by name.

    Examples
    --------
    >>> cards = {"uni__patch_mean": {"pooling": "patch_mean"}, "uni__class_token": {"pooling":
    ...     "class_token"}, "other": {"pooling": "default"}}
    >>> pooling_variants(cards)
    {'uni': {'class_token': 'uni__class_token', 'patch_mean': 'uni__patch_mean'}}
    """
    found: dict[str, dict[str, str]] = {}
    for name, card in sorted(cards.items()):
        pooling = str(card.get("pooling"))
        entry = name.removesuffix(variant_name("", pooling))
        if entry != name:
            found.setdefault(entry, {})[pooling] = name
    return {entry: variants for entry, variants in found.items() if len(variants) > 1}


def variant_sentences(
    findings: pl.DataFrame, cards: Mapping[str, Mapping[str, Any]], words: Words
) -> dict[str, str]:
    """For each pooling variant, which checks pass with one pooling of the model and fail with another.

    Returns
    -------
    dict
        A sentence by encoder; the same for all variants of a model.
    """
    sentences: dict[str, str] = {}
    for variants in pooling_variants(cards).values():
        sentence = _sentence(findings, variants, words)
        sentences |= dict.fromkeys(variants.values(), sentence)
    return sentences


def _sentence(findings: pl.DataFrame, variants: Mapping[str, str], words: Words) -> str:
    own = findings.filter(pl.col("encoder").is_in(list(variants.values())))
    decided = own.filter(pl.col("verdict").is_in(_DECIDED))
    both, turned = set(), []
    for first, second in combinations(variants, 2):
        pairs = decided.filter(encoder=variants[first]).join(
            decided.filter(encoder=variants[second]), on=_CHECK, maintain_order="left"
        )
        both |= set(pairs.select(_CHECK).rows())
        turned += [
            f"{words.check_name(row)} ({row['verdict']} with {first}, {row['verdict_right']} with "
            f"{second})"
            for row in pairs.filter(pl.col("verdict") != pl.col("verdict_right")).to_dicts()
        ]
    poolings, alone = " and ".join(variants), _decided_alone(decided, both, variants, words)
    if turned:
        said = f" How tokens are pooled turns verdicts: {'; '.join(turned)}."
    elif both:
        said = (
            f" How tokens are pooled turns no verdict: {poolings} agree in the {len(both)} of "
            f"{own.select(_CHECK).n_unique()} checks that are decided for two of them."
        )
    else:
        said = f" No check was decided for two poolings of the model ({poolings})."
    return said + (f" Decided for one pooling alone: {'; '.join(alone)}." if alone else "")


def _decided_alone(
    decided: pl.DataFrame,
    both: Container[tuple[Any, ...]],
    variants: Mapping[str, str],
    words: Words,
) -> list[str]:
    """Checks that pass or fail with one pooling and stay open with the others."""
    named = {encoder: pooling for pooling, encoder in variants.items()}
    return [
        f"{words.check_name(row)} ({row['verdict']} with {named[row['encoder']]})"
        for row in decided.to_dicts()
        if tuple(row[key] for key in _CHECK) not in both
    ]
