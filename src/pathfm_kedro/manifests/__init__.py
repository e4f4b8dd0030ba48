"""Manifests made of folders and of public cohorts' files."""
