"""From token ids to vectors and scores: the backbone, its attention and linear layers, its heads.

Start at backbone.py. Torch lives here; texts, folders' rules and jobs stay outside.
"""
