"""Read recipes (YAML and `key=value`) into frozen, checked objects, and write them back."""
