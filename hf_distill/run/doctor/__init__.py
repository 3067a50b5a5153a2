"""`hf-distill doctor`: loads what a run would load, and says before the run what is wrong with it."""
