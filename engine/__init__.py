"""Everything that touches torch and transformers. Start at model.py; loading.py builds one.

folder/: what a folder says. text/: to token ids. forward/: to vectors and scores. verify/: checks.
Must not know HTTP, jobs or the batcher.
"""
