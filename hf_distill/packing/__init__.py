"""Layers that run on tokens alone, without padding."""
