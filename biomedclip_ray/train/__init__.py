"""Corpus to bundle: the order of pairs, batches, steps, checkpoints; stage train."""
