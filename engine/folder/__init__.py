"""What a model's folder on disk says: how it must be served, its prompts, its weight files.

Read from JSON files and headers alone, so that many folders can be listed at once: no torch here.
"""
