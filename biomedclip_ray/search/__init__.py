"""The index of every kept pair: vectors in a Lance table, and search over it."""
