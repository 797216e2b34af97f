"""A forkserver context, one per pytest process, with the imports of a training preloaded, so that forks start fast."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["trivium.training", "accelerate.commands.launch"])
