"""Files in and out: features, labels, and outputs that appear whole or not at all."""
