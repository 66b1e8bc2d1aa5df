"""One file an operator: its fake, its autograd, and the call of the backend that was chosen."""
