"""Recipes as text: YAML, `key=value`, and what is wrong with them."""
