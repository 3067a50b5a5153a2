"""Runs the layers of a model on real tokens alone, without padding."""
