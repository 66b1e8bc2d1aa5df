"""What each part of the model is worth: ``merc ablate``."""
