"""MERC-KDC."""
