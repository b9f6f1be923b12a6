"""The model: configurations, tokenizers, losses, the encoder and its vectors, bundles that plain open_clip loads."""
