"""The operations of a step over pages: Triton kernels, the same in PyTorch, and weights as they want them.

`kernels` runs on CUDA, `torch_ops` anywhere. Weights: `projections` of 16 or 4 bits (`four_bit`), and
`lora_weights`.
"""
