"""Checkpoints from labelled faces, and the thresholds that suit them."""
