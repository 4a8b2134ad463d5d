"""Runs: stages, their files, progress, and the Python interface."""
