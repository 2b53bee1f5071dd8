"""From texts and pairs to token ids: tokenizing, the rerankers' templates, limits.

Needs the tokenizers library and no torch tensors. Anything that reads or makes ids comes in here.
"""
