"""Audits of the past: one version of what was measured of a cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathfm_kedro.cohorts import refuse_unknown_cohort
from pathfm_kedro.dvc_stages import cohort_globals

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from kedro.config import OmegaConfigLoader
    from kedro.io.catalog_config_resolver import CatalogConfigResolver
    from numpy.typing import NDArray

#: The version that `dvc repro` writes.
PINNED = "0-repro"
#: The result table of an audit, below the cohort's folder.
MEASUREMENTS = "08_reporting/measurements.parquet"


@dataclass(frozen=True)
class Audit:
    """One version of what was measured of a cohort.

    Attributes
    ----------
    cohort, version
        As shown; an empty version is the newest one.
    folder, conf
        Of the cohort's data, and of the configuration of all cohorts.
    """

    cohort: str
    version: str
    folder: Path
    conf: Path

    @classmethod
    def parse(cls, text: str, root: Path) -> Audit:
        """Read ``COHORT`` or ``COHORT@VERSION``.

        Raises
        ------
        ClickException
            If there is no such audit, naming those there are.
        """
        cohort, _, version = text.partition("@")
        refuse_unknown_cohort(cohort, root / "conf")
        folder = root / cohort_globals(root, cohort)["root"]
        found = sorted(path.name for path in (folder / MEASUREMENTS).glob("*") if path.is_dir())
        if not found:
            raise click.ClickException(
                f"cohort {cohort} was not audited yet: kedro run --env {cohort}"
            )
        if version and version not in found:
            raise click.ClickException(
                f"cohort {cohort} has no version '{version}': there are {', '.join(found)}"
            )
        return cls(cohort, version or found[-1], folder, root / "conf")

    def __str__(self) -> str:
        return f"{self.cohort}@{self.version}"

    @property
    def table(self) -> Path:
        """Where the table of all experiments lies."""
        return self.folder / MEASUREMENTS / self.version / "measurements.parquet"

    @cached_property
    def measurements(self) -> pl.DataFrame:
        """The table of all experiments."""
        import polars as pl

        return pl.read_parquet(self.table)

    @cached_property
    def slides(self) -> pl.DataFrame | None:
        """Its slides; None where they were not recorded."""
        found: pl.DataFrame | None = self.load("slides")
        return found

    def load(self, name: str) -> Any:
        """A dataset of the catalog as it was for this audit; None where there was none.

        What the audit did not make itself is the newest that was there before it.
        """
        from kedro.io.core import AbstractVersionedDataset

        entry = dict(self._catalog.resolve_pattern(name) or {})
        # Earlier versions may have been written before a check was.
        entry.pop("validator", None)
        if "filepath" not in entry:
            return None
        path = self.folder / Path(entry["filepath"]).relative_to(self._root)
        version = self._version_of(path)
        if version is None:
            return None
        settings = entry | {"filepath": path.as_posix()}
        return AbstractVersionedDataset.from_config(name, settings, load_version=version).load()

    @cached_property
    def parameters(self) -> Mapping[str, Any]:
        """What the audit was made with, as its report prints it."""
        provenance = self.load("provenance")
        return {} if provenance is None else dict(provenance["parameters"])

    @cached_property
    def _root(self) -> str:
        """The cohort's folder as its catalog writes it."""
        return str(self._loader["globals"]["root"])

    @cached_property
    def _loader(self) -> OmegaConfigLoader:
        from pathfm_kedro.cohorts import CONFIG_LOADER_ARGS
        from pathfm_kedro.sizes import SizedConfigLoader

        return SizedConfigLoader(str(self.conf), env=self.cohort, **CONFIG_LOADER_ARGS)

    @cached_property
    def _catalog(self) -> CatalogConfigResolver:
        from kedro.io.catalog_config_resolver import (
            DEFAULT_RUNTIME_PATTERN,
            CatalogConfigResolver,
        )

        return CatalogConfigResolver(
            self._loader["catalog"], default_runtime_patterns=DEFAULT_RUNTIME_PATTERN
        )

    def vectors(
        self, encoder: str, most: int
    ) -> tuple[NDArray[np.float64], NDArray[np.str_]] | None:
        """[n, d] vectors and [n] patients of at most so many tiles, the patients' taking turns.

        Only what is sampled is read; None where there are no vectors of the encoder.
        """
        import numpy as np
        import polars as pl

        from pathfm_kedro.statistics.sampling import shuffled_turns

        shards = self.load(f"embeddings.{encoder}")
        if shards is None or self.slides is None:
            return None
        known = (
            self.slides.select("slide_id", "patient_id")
            .filter(pl.col("slide_id").is_in(list(shards.slide_ids)))
            .sort("slide_id")
        )
        if known.is_empty():
            return None
        counts = [int(shards.index[slide]["rows"]) for slide in known["slide_id"]]
        rows = known[np.repeat(np.arange(len(counts)), counts)].select(
            "slide_id",
            pl.col("patient_id").cast(pl.String()),
            place=pl.int_range(pl.len()).over("slide_id"),
            _row=pl.int_range(pl.len()),
        )
        chosen = shuffled_turns(rows, [["patient_id"]], 0).head(most).sort("_row")
        parts = [
            shards.load_slide(str(slide))[own["place"].to_numpy()]
            for (slide,), own in chosen.group_by("slide_id", maintain_order=True)
        ]
        return np.concatenate(parts).astype(np.float64), chosen["patient_id"].to_numpy()

    def _version_of(self, path: Path) -> str | None:
        """The audit's version of a dataset, or where it took an earlier one, the newest before it.

        Datasets of one family share the folder of a version, others have one of their own.
        """
        places = (path, path.parent)
        found = sorted(one.parent.name for place in places for one in place.glob(f"*/{path.name}"))
        before = [version for version in found if version <= self.version]
        return before[-1] if before else None
