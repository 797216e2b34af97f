"""Storage of runs: atomic writes, manifests, locks, checkpoints, checksums and checks of pickles."""
