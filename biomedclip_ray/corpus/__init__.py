"""Pairs to what is trained on: one's own pairs, near duplicates, groups, splits, exports."""
