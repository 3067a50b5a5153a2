"""Recipes: YAML and `key=value` read into frozen, checked objects, and written back."""
