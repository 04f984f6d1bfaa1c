"""Continuous batching: the engine, its loop, the scheduler, batches and the sampler."""
