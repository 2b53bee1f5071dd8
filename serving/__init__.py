"""The running server as a library, without HTTP."""
