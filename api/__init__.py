"""HTTP: one dialect per file, over one job path."""
