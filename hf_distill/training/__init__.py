"""What `DistillationTrainer` is made of: batches, forward passes, loss terms, checks, checkpoints."""
