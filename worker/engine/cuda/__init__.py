"""Kernels of our own for GPUs; nothing here is needed on a CPU."""
