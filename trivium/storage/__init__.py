"""Storage of runs: the manifest and the lock of a run's folder, checksums of checkpoints, restricted unpickling."""
