"""Teachers asked once: what is kept of their answers."""
