"""Engines: dictionaries of arrays in, dictionaries of arrays out."""
