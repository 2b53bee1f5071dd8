"""Micro-batching: admission, the scheduler and its jobs, and the worker thread that runs batches.

Only the standard library may come in: no tensor, model, HTTP or asyncio.
"""
