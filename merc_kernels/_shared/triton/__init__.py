"""The Triton kernels, one file an operator: the only modules that import triton."""
