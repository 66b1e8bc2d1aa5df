"""The fused algorithms in chunked plain PyTorch, one file an operator: linear memory on any device."""
