"""Figures to pairs: captions, sub-captions, panels, kinds, selection; stage preprocess."""
