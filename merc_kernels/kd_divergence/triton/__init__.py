"""The divergence in Triton: with the other folders of this name the only modules that import triton."""
