"""What a bundle can do, in figures that hold their own controls: retrieval, zero-shot, probe, VQA."""
