"""Models: their names, where they come from, their files, and others made into ours."""

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, CARD)
"""The files of a checkpoint, in a folder or on the Hub; the card is for people."""
