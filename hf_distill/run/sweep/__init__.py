"""The command `hf-distill sweep`: a recipe run once for every combination of some of its values."""
