"""From transcripts and recordings to a corpus of features (``pip install merc-kdc[extract]``)."""
