"""The models of a running server: which there are, which are in memory, how they load and run.

Folders and settings come in; loaded models, which are used under a lease, go out.
"""
