"""HTTP itself: the frame of a request, its key, its body, its errors and its answer.

It knows that there are dialects and how each writes an error, and no more of them.
"""
