"""The commands `embedding …`."""
