"""Around a run: progress is counted, what is missing is told, vectors of something else are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.io.core import Version
from kedro.pipeline import Pipeline, node
from kedro.runner import SequentialRunner

from pathfm_kedro.datasets.parquet import ParquetDataset
from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.engine.run_display import active_display
from pathfm_kedro.hooks import RunHooks, VectorHooks, VersionHooks, verdict_lines
from pathfm_kedro.statistics.tables import OtherSlidesError, OtherTilesError, digests_by_slide

SLIDES = pl.DataFrame({"slide_id": ["a", "b"], "fingerprint": ["file a", "file b"]})
TILES = pl.DataFrame(
    {"slide_id": ["a", "a", "b"], "tile_id": ["a1", "a2", "b1"], "x": [0, 9, 0], "y": [0, 0, 0]}
).with_columns(field_um=pl.lit(112.0), mpp=pl.lit(0.5))
ENTRY = {"model": "timm:test_vit", "pooling": "patch_mean", "batch_size": 8}


@dataclass(frozen=True)
class Job:
    slide_id: str
    told: Mapping[str, str]

    def header(self) -> Mapping[str, str]:
        return self.told

    def compute(self) -> dict[str, np.ndarray]:
        return {"embedding": np.ones((2, 3), np.float32)}


def plan(tiles: pl.DataFrame, slides: pl.DataFrame, encoder: str) -> ShardPlan:
    files = dict(slides.iter_rows())
    jobs = [
        Job(s, {"tile_ids": d, "slide": files[s], "encoder": encoder})
        for s, d in digests_by_slide(tiles).items()
    ]
    return ShardPlan(jobs, EngineSettings(workers=1))


@pytest.fixture
def catalog(tmp_path):
    def shards(name: str) -> ShardedTensorDataset:
        return ShardedTensorDataset(
            filepath=(tmp_path / name).as_posix(), version=Version(None, None)
        )

    return DataCatalog(
        {
            "slides": MemoryDataset(SLIDES),
            "tiles": MemoryDataset(TILES),
            "pool": MemoryDataset(TILES.filter(pl.col("tile_id") != "a2")),
            "state": MemoryDataset("weights 1"),
            "params:encoders.uni": MemoryDataset(ENTRY),
            "embeddings.uni": shards("uni"),
            "views.uni": shards("views"),
        }
    )


EMBED = node(
    lambda tiles, slides, entry, state: plan(tiles, slides, state),
    ["tiles", "slides", "params:encoders.uni", "state"],
    "embeddings.uni",
    name="embed",
    namespace="embed.uni",
)
VIEWS = node(
    lambda pool, slides, entry, state: plan(pool, slides, state),
    ["pool", "slides", "params:encoders.uni", "state"],
    "views.uni",
    name="views",
    namespace="robustness.texture.uni",
)
ON_VECTORS = node(
    lambda vectors, *_: len(vectors.slide_ids),
    ["embeddings.uni", "tiles", "pool"],
    "n",
    name="read",
    namespace="inheritance.uni",
)
ON_VIEWS = node(
    lambda views, _: len(views.slide_ids),
    ["views.uni", "pool"],
    "m",
    name="look",
    namespace="robustness",
)


def run(catalog: DataCatalog, *nodes: Any, hooks: tuple[Any, ...] = (VectorHooks(),)) -> None:
    manager = _create_hook_manager()
    for hook in hooks:
        manager.register(hook)
    pipeline = Pipeline(nodes)
    told = {"run_params": {"env": "clinic"}, "pipeline": pipeline, "catalog": catalog}
    manager.hook.before_pipeline_run(**told)
    SequentialRunner().run(pipeline, catalog, manager)
    manager.hook.after_pipeline_run(**told, run_result={})


def change(catalog: DataCatalog, name: str, data: Any) -> None:
    catalog[name] = MemoryDataset(data)


def test_vectors_of_the_tables_at_hand_are_let_through(catalog):
    run(catalog, EMBED, VIEWS, ON_VECTORS, ON_VIEWS)
    assert catalog.load("embeddings.uni").made_by["encoder"] == "uni"
    # Where nobody made an entry, as in 0.1.0, there is nothing to compare.
    catalog["embeddings.uni"].made_by = {}
    catalog["embeddings.uni"].save(plan(TILES, SLIDES, "weights 1"))
    assert catalog.load("embeddings.uni").made_by == {}
    run(catalog, ON_VECTORS)


@pytest.mark.parametrize(("made", "used"), [(EMBED, ON_VECTORS), (VIEWS, ON_VIEWS)])
def test_tiles_cut_at_another_resolution_are_refused_in_every_family(catalog, made, used):
    run(catalog, made)
    for name in ("tiles", "pool"):
        change(catalog, name, catalog.load(name).with_columns(mpp=pl.lit(1.0)))
    with pytest.raises(
        OtherTilesError, match=rf"{made.outputs[0]}: .*run the embed pipeline again"
    ):
        run(catalog, used)


@pytest.mark.parametrize(("made", "used"), [(EMBED, ON_VECTORS), (VIEWS, ON_VIEWS)])
def test_a_replaced_slide_is_refused_though_the_node_does_not_read_slides(catalog, made, used):
    run(catalog, made)
    change(catalog, "slides", SLIDES.with_columns(fingerprint=pl.lit("new")))
    with pytest.raises(OtherSlidesError, match=rf"{made.outputs[0]}: .*2 slides, a first.*again"):
        run(catalog, used)


@pytest.mark.parametrize(
    ("key", "value"), [("pooling", "class_token"), ("model", "timm:vit"), ("mean", [0.1, 0.2, 0.3])]
)
def test_a_changed_entry_is_refused_by_key(catalog, key, value):
    run(catalog, EMBED)
    change(catalog, "params:encoders.uni", ENTRY | {key: value})
    with pytest.raises(ValueError, match=rf"embeddings\.uni: .*encoders\.uni\.{key} = .*again"):
        run(catalog, ON_VECTORS)


def test_an_entry_that_gives_the_same_vectors_is_no_change(catalog):
    run(catalog, EMBED)
    change(catalog, "params:encoders.uni", ENTRY | {"batch_size": 64, "pretrained": True})
    run(catalog, ON_VECTORS)


def test_views_of_another_state_of_the_encoder_are_refused(catalog):
    run(catalog, EMBED, VIEWS)
    change(catalog, "state", "weights 2")
    run(catalog, EMBED)
    with pytest.raises(
        ValueError, match=r"views\.uni: .*another state of encoder uni than embeddi"
    ):
        run(catalog, ON_VIEWS)


def test_a_run_says_what_is_done_and_what_was_reused(catalog, capsys):
    run(catalog, EMBED, ON_VECTORS, hooks=(RunHooks(), VectorHooks()))
    run(catalog, EMBED, hooks=(RunHooks(),))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cohort clinic: embed, inheritance; details in ")
    assert lines[1] == "embed: 1 step"
    assert "results per slide: 2 computed" in lines[2]
    assert lines[3:5] == ["inheritance: 1 step", "inheritance: done in 0:00:00"]
    assert lines[-1].endswith("results per slide: 2 reused")
    assert active_display() is None


def test_what_other_pipelines_have_to_make_is_told_before_the_first_step(catalog, tmp_path, capsys):
    catalog["tiles"] = ParquetDataset(
        filepath=(tmp_path / "tiles.parquet").as_posix(), version=Version(None, None)
    )
    with pytest.raises(
        ValueError, match=r"embeddings\.uni and 1 more: not made yet for cohort clinic"
    ):
        run(catalog, ON_VECTORS, hooks=(RunHooks(),))
    assert "step" not in capsys.readouterr().out


@pytest.mark.parametrize("saves_first", [True, False])
def test_a_run_keeps_to_its_own_versions_while_another_one_saves(tmp_path, saves_first):
    def dataset(save: str | None) -> ParquetDataset:
        return ParquetDataset(
            filepath=(tmp_path / "tiles.parquet").as_posix(), version=Version(None, save)
        )

    ours, theirs = TILES, TILES.with_columns(mpp=pl.lit(1.0))
    if not saves_first:
        dataset("2026-01-01").save(ours)
    catalog = DataCatalog({"seed": MemoryDataset(0), "tiles": dataset("2026-01-02")})

    seen: list[float] = []

    def look(tiles: pl.DataFrame, *_: Any) -> int:
        seen.append(tiles["mpp"][0])
        return 1

    def meanwhile(_: Any) -> int:
        dataset("2026-12-31").save(theirs)
        return 1

    makes = node(lambda _: ours, "seed", "tiles", name="a_makes")
    reads = node(look, "tiles", "first", name="b_reads")
    waits = node(meanwhile, "first", "waited", name="c_waits")
    again = node(look, ["tiles", "waited"], "second", name="d_reads")
    parts = ([makes] if saves_first else []) + [reads, waits, again]
    run(catalog, *parts, hooks=(VersionHooks(),))
    assert seen == [0.5, 0.5]
    assert dataset(None).load()["mpp"][0] == 1.0


def test_the_verdicts_are_one_line_an_encoder():
    table = pl.DataFrame(
        {
            "encoder": ["uni", "noise"],
            "role": ["encoder", "control"],
            "verdict": ["fail", "pass"],
            "n_fail": [2, 0],
            "n_not_applicable": [1, 0],
        }
    )
    assert verdict_lines(table) == [
        "uni    fail  (2 fail, 1 not applicable)",
        "noise  pass  (control: no check)",
    ]


def test_a_wrong_parameter_is_told_before_the_first_step(capsys):
    made = []
    steps = Pipeline(
        [
            node(lambda: made.append("vectors") or 1, None, "vectors"),
            node(lambda vectors, p: vectors, ["vectors", "params:rotation"], "done"),
        ]
    )
    catalog = DataCatalog({"params:rotation": MemoryDataset({"draws": "many"})})
    with pytest.raises(ValueError, match=r"rotation\.draws is 'many'"):
        run(catalog, steps, hooks=(RunHooks(),))
    assert not made
    assert "step" not in capsys.readouterr().out
