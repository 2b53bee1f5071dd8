"""`embedding verify`: published and recorded answers, and how a loaded model compares with them.

compare.py runs a model; published.py and records.py are plain data and import no torch.
"""
