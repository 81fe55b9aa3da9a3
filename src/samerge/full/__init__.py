"""Fully trained checkpoints of one base, merged element by element into one checkpoint. Everything is streamed."""
