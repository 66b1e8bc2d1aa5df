"""The commands of ``merc``: what each takes, and what it does."""
