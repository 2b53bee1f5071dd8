"""Micro-batching: what waits, what runs next, and the thread that runs it. No tensor, no model."""
