"""Pixels: open a slide, find tissue, read a field of view, draw the phantom."""
