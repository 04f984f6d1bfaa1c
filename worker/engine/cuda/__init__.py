"""How a CUDA device computes steps: paged keys and values, fused kernels, recorded graphs."""
