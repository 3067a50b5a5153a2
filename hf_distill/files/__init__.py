"""Files on disk: atomic writes, checksums, locks, and which files belong to a run."""
