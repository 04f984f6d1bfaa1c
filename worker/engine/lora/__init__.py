"""LoRA adapters in a mixed batch: each token gets the factors of its own adapter.

Three implementations of a linear layer, all exact, for adapters of any ranks and targets:
`grouped_linear` and `merged_linear` for CPUs, `stacked_linear` for shapes that do not depend on the
mixture. The fused kernels of a GPU have their own (`worker.engine.cuda.projections`).
"""
