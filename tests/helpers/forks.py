"""Processes that start at once: forked from one, per pytest process, that has imported what a training takes."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["trivium.training", "accelerate.commands.launch"])
