"""Kedro datasets: manifest, slide files, tables, sharded tensors, images."""
