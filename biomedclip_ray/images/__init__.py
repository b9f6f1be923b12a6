"""Bytes of a picture file to upright RGB, resampled, hashed."""
