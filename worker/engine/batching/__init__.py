"""Continuous batching: the engine and its loop, scheduler, batches, model runners and sampler."""
