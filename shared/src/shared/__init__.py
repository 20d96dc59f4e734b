"""Machinery under the packages: data sets, token shards, trainer, checkpoints, profiling."""
