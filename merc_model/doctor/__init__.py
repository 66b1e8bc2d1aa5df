"""What is wrong with the features of a corpus (``merc doctor``)."""
