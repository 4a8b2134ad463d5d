"""The forms in which embeddings are kept on disk: told by content, then read block by block or named."""
