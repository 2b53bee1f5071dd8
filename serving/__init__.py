"""The running server as a library: from texts to outputs and scores, without HTTP.

The app, the commands and the Python door come in by `server` and `local`; requests are records.
"""
