"""A model that is pooled in several ways: its cards say whether a verdict turns."""

from __future__ import annotations

import re

import polars as pl

from pathfm_kedro.pipelines.report.verdicts import verdict_by_encoder
from tests.pipelines.report.conftest import WORDS, judged

NAMES = {"alpha": "uni__class_token", "beta": "uni__patch_mean"}
CARDS = {name: {"pooling": name.partition("__")[2]} for name in NAMES.values()}


def sentences(findings: pl.DataFrame, controls: pl.DataFrame) -> dict[str, str]:
    named = findings.with_columns(pl.col("encoder").replace(NAMES))
    stated = verdict_by_encoder(named, controls, WORDS, {"encoders": CARDS})
    return dict(stated.select("encoder", "sentence").rows())


def test_checks_that_pass_with_one_pooling_and_fail_with_the_other_are_named(
    measurements, provenance
):
    findings, controls, _ = judged(measurements, provenance)
    index = findings.filter(encoder="alpha", metric="ri_minus_null", verdict="pass")
    assert index.height
    stated = sentences(findings, controls)
    assert "pools" not in stated["noise"]
    for name in NAMES.values():
        assert "How tokens are pooled turns verdicts: " in stated[name]
        assert "(pass with class_token, fail with patch_mean)" in stated[name]


def test_poolings_that_agree_say_so(measurements, provenance):
    findings, controls, _ = judged(measurements, provenance)
    alike = findings.filter(pl.col("encoder") == "alpha")
    both = pl.concat([alike, alike.with_columns(encoder=pl.lit("beta"))])
    n = alike.filter(pl.col("verdict").is_in(["pass", "fail"])).height
    expected = (
        f"turns no verdict: class_token and patch_mean agree in the {n} of {alike.height} checks"
    )
    for stated in sentences(both, controls).values():
        assert expected in stated
        assert "alone" not in stated


def test_a_check_that_is_open_with_the_other_pooling_is_named(measurements, provenance):
    findings, controls, _ = judged(measurements, provenance)
    alike = findings.filter(pl.col("encoder") == "alpha")
    passes = (pl.col("metric") == "ri_minus_null") & (pl.col("verdict") == "pass")
    left_open = pl.when(passes).then(pl.lit("inconclusive")).otherwise("verdict").alias("verdict")
    other = alike.with_columns(left_open, encoder=pl.lit("beta"))
    for stated in sentences(pl.concat([alike, other]), controls).values():
        (alone,) = re.findall(r"Decided for one pooling alone: ([^.]*)\.", stated)
        assert "(pass with class_token)" in alone
        assert "patch_mean" not in alone


def test_an_encoder_of_its_own_pooling_is_no_variant(measurements, provenance):
    findings, controls, verdicts = judged(measurements, provenance)
    cards = {"encoders": {"alpha": {"pooling": "class_token"}, "beta": {"pooling": "patch_mean"}}}
    assert verdict_by_encoder(findings, controls, WORDS, cards).equals(verdicts)
