"""Bytes of an image file to upright RGB, resampled, hashed."""
