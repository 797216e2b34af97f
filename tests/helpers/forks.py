"""Provide a forkserver context per pytest process, with the imports of a training run preloaded."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["trivium.training", "accelerate.commands.launch"])
