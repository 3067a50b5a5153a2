"""Layers that run on real tokens alone, without padding."""
