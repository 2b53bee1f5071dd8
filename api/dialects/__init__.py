"""One dialect a file: what a client sends, what it is answered."""
