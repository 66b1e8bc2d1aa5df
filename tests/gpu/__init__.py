"""What only a GPU can show; run by ``make gpu``, skipped elsewhere."""
