"""From checkpoints to bundles: recipes, export, and the proof that the numbers are the same."""
