"""What the stages of a run need: options, artifacts and their keys, a place to keep them, blocks, progress."""
