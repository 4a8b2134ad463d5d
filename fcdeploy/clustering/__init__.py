"""Clusters from links, and how good they are."""
