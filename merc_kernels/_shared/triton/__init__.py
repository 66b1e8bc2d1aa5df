"""What the Triton kernels of the operators share."""
