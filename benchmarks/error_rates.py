"""Error rates of the judged checks on simulated cohorts whose truth is known.

    python benchmarks/error_rates.py --quick
    python benchmarks/error_rates.py --cohorts 400 --workers 8 --table docs/error_rates.md

Vectors are sums of effects of label, center and patient and of each tile's own noise; a harmonised
variant is made of them as the audit makes it. Each cohort goes through the experiments themselves,
with the criteria of conf/base. For every check, encoder and size:

- wrong: verdicts that must not be (a pass of an encoder that knows nothing or follows the center, a
  fail of one that knows the label), with the upper end of their exact 95% interval;
- right: verdicts that should be, of an encoder that has one (power);
- coverage: how often the interval holds the mean over cohorts, the figure's expectation.

Sizes are patients per cell of label and center. Seeds are those of the cohorts: the same table each
time.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from pathfm_kedro.encoders.harmonised import center_maps
from pathfm_kedro.pipelines.robustness.clustering import (
    ClusteringScore,
    clustering_figures,
    clustering_statistics,
)
from pathfm_kedro.pipelines.robustness.margin_statistics import index_and_margin_statistics
from pathfm_kedro.pipelines.robustness.margins import (
    RobustnessMargins,
    robustness_margins_figures,
)
from pathfm_kedro.pipelines.robustness.robustness_index import (
    RobustnessIndex,
    choose_k,
    robustness_index_figures,
)
from pathfm_kedro.statistics.bootstrap import binomial_interval
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.parameters import read_parameters

CONF = Path(__file__).parents[1] / "conf/base/parameters_robustness.yml"

#: Fewer draws than an audit: a verdict of one cohort in some hundreds need not be steady.
QUICKER: dict[str, dict[str, Any]] = {
    "robustness_index": {
        "designs": ["all"],
        "k_grid": [1, 3, 5, 9, 15, 31],
        "draws": 400,
        "n_permutations": 100,
    },
    "robustness_margins": {
        "m": [5],
        "sampled_queries": 300,
        "draws": 400,
        "n_permutations": 100,
    },
    "clustering_score": {
        "max_tiles": 300,
        "k_range": [2, 12],
        "restarts": 2,
        "draws": 400,
        "n_permutations": 100,
    },
}


#: An interval narrower than this speaks of a figure at the end of its range.
_NO_WIDTH = 1e-6


@dataclass(frozen=True)
class Simulated:
    """An encoder with known effects.

    Attributes
    ----------
    label, center
        Standard deviation of the effects in each of the 32 dimensions; a tile's own noise has 1.
    patient
        The same of patients.
    variant
        How centers are taken out; empty for not at all.
    wrong, right
        The verdict that it must not get, and the one that it should; empty for neither.
    """

    label: float = 0.0
    center: float = 0.0
    patient: float = 0.5
    variant: str = ""
    wrong: str = "pass"
    right: str = ""


ENCODERS = {
    "knows nothing": Simulated(),
    "knows nothing, patients far apart": Simulated(patient=1.5),
    "knows nothing, centred": Simulated(patient=1.0, variant="centring"),
    "knows nothing, ComBat": Simulated(patient=1.0, variant="combat"),
    "knows nothing, whitened": Simulated(patient=1.0, variant="whitening"),
    "follows the center": Simulated(center=1.0, right="fail"),
    "follows the center, knows a little": Simulated(0.35, 1.0, right="fail"),
    "follows the center, centred": Simulated(center=1.0, variant="centring"),
    "knows the label": Simulated(0.5, 0.2, wrong="fail", right="pass"),
    "knows the label, centred": Simulated(0.5, 0.8, variant="centring", wrong="fail", right="pass"),
    "perfect": Simulated(2.0, wrong="fail", right="pass"),
}


class Vectors:
    """Embeddings of one encoder, one slide a patient."""

    def __init__(self, shards: dict[str, NDArray[np.float32]]) -> None:
        self.shards = shards
        self.slide_ids = tuple(sorted(shards))

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        """Rows of the given slides."""
        return np.concatenate([self.shards[slide] for slide in slide_ids])

    def load_slide(self, slide_id: str, name: str = "embedding") -> NDArray[np.float32]:
        """Rows of one slide."""
        return self.shards[slide_id]


def cohort(
    encoder: Simulated,
    seed: int,
    patients: int,
    labels: int = 4,
    centers: int = 3,
    tiles: int = 8,
    d: int = 32,
) -> tuple[pl.DataFrame, pl.DataFrame, Vectors]:
    """A cohort with so many patients in each cell; the seed changes who they are and nothing else."""
    fixed, generator = np.random.default_rng(0), np.random.default_rng([seed, patients])
    of_label = encoder.label * fixed.standard_normal((labels, d))
    of_center = encoder.center * fixed.standard_normal((centers, d))
    rows, shards = [], {}
    for label in range(labels):
        for center in range(centers):
            for _ in range(patients):
                name = f"s{len(rows):04d}"
                rows.append((name, name, f"center {center}", "organ", f"label {label}", "usable"))
                mean = of_label[label] + of_center[center]
                mean = mean + encoder.patient * generator.standard_normal(d)
                shard = mean + generator.standard_normal((tiles, d))
                shards[name] = shard.astype(np.float32)
    columns = ["slide_id", "patient_id", "center", "organ", "label", "status"]
    slides = pl.DataFrame(rows, schema=columns, orient="row")
    of_tiles = [(f"{s}-{i}", s) for s in shards for i in range(tiles)]
    table = pl.DataFrame(of_tiles, schema=["tile_id", "slide_id"], orient="row")
    vectors = Vectors(shards)
    if encoder.variant:
        maps = center_maps(slides, vectors, encoder.variant)
        vectors = Vectors({s: maps[s](shard) for s, shard in shards.items()})
    return slides, table, vectors


def parameters() -> dict[str, dict[str, Any]]:
    """Blocks of conf/base, with fewer draws."""
    told = yaml.safe_load(CONF.read_text(encoding="utf-8"))
    return {name: told[name] | changes for name, changes in QUICKER.items()}


def judged(data: tuple[pl.DataFrame, pl.DataFrame, Vectors]) -> pl.DataFrame:
    """Rows of the judged checks of one cohort."""
    told = parameters()
    index_block, margins_block, cluster_block = told.values()
    index = read_parameters(RobustnessIndex, "robustness_index", index_block)
    margins = read_parameters(RobustnessMargins, "robustness_margins", margins_block)
    clusters = read_parameters(ClusteringScore, "clustering_score", cluster_block)
    counts, distances = index_and_margin_statistics(*data, index_block, margins_block)
    k = choose_k(index_block, encoder=counts)
    tables = [
        measure(figures, name, "encoder", p.criteria)
        for name, figures, p in (
            ("robustness_index", robustness_index_figures(counts, k, index), index),
            ("robustness_margins", robustness_margins_figures(distances, k, margins), margins),
            (
                "clustering_score",
                clustering_figures(clustering_statistics(*data, clusters), clusters),
                clusters,
            ),
        )
    ]
    return pl.concat(tables).filter(pl.col("threshold").is_not_null())


def one(task: tuple[str, int, int]) -> pl.DataFrame:
    """Judged rows of one simulated cohort."""
    name, patients, seed = task
    rows = judged(cohort(ENCODERS[name], seed, patients))
    return rows.select("metric", "value", "ci_low", "ci_high", "verdict").with_columns(
        simulated=pl.lit(name), patients=pl.lit(patients)
    )


def rates(rows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Error rates of each check, encoder and size."""
    for (metric, name, patients), part in rows.group_by(
        "metric", "simulated", "patients", maintain_order=True
    ):
        encoder, n, verdicts = ENCODERS[name], part.height, part["verdict"].to_list()
        wrong = verdicts.count(encoder.wrong)
        mean = part["value"].mean()
        held = part.filter(pl.col("ci_low") <= mean, pl.col("ci_high") >= mean).height
        wide = part.filter(pl.col("ci_high") - pl.col("ci_low") > _NO_WIDTH).height
        yield {
            "check": metric,
            "encoder": name,
            "patients": patients,
            "cohorts": n,
            "mean": f"{mean:+.3f}",
            "wrong": f"{encoder.wrong} {wrong / n:.3f} (≤ {binomial_interval(wrong, n)[1]:.3f})",
            "right": f"{encoder.right} {verdicts.count(encoder.right) / n:.2f}"
            if encoder.right
            else "–",
            "coverage": f"{held / n:.2f}" if wide > n / 2 else "no width",
        }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row[key]) for key in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print the table, and write it where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=400, help="of each encoder and size")
    parser.add_argument("--patients", type=int, nargs="+", default=[3, 6], help="of each cell")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="20 cohorts of one size")
    parser.add_argument("--table", type=Path, help="file that the table is written to")
    asked = parser.parse_args()
    if asked.quick:
        asked.cohorts, asked.patients = 20, [3]
    tasks = [
        (name, patients, seed)
        for name in asked.encoders
        for patients in asked.patients
        for seed in range(asked.cohorts)
    ]
    found = pl.concat(_mapped(one, tasks, asked.workers))
    table = markdown(list(rates(found.sort("metric", maintain_order=True))))
    print(table)
    if asked.table:
        asked.table.write_text(f"{table}\n", encoding="utf-8")


def _mapped(
    function: Callable[[Any], pl.DataFrame], tasks: Sequence[Any], workers: int
) -> list[pl.DataFrame]:
    """Results in the order of the tasks, whatever the number of processes."""
    if workers == 1:
        return [function(task) for task in tasks]
    from multiprocessing import get_context

    # One process, one thread; a new process reads these before it imports anything.
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(threads, "1")
    # A forked process would share the thread pool of Polars.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, tasks, chunksize=4))


if __name__ == "__main__":
    main()
