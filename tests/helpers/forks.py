"""Return a forkserver context, one per pytest process, that has preloaded the imports of a training."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["trivium.training", "accelerate.commands.launch"])
