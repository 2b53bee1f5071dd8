"""HTTP and nothing else: the frame of a request, the dialects, operations and the page.

Requests come in over the wire and go down to `serving`; nothing here knows a model or a tensor.
"""
