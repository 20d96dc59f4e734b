"""Byte-pair-encoding tokenizers."""
