"""What the operators share: registration, backends, checks, options; nothing here knows an operator."""
