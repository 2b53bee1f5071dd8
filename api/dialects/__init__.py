"""One dialect a file: what its clients send, what they are answered. Dialects import none other.

A module with `routes` is served by being here. Fields that several share are in `fields`.
"""
