"""The student in other formats: written, compared with PyTorch, measured, and the command `hf-distill export`."""
