"""The commands `embedding …`: from arguments to what is printed and the exit code.

Tables go to stdout, reasons to stderr. They know the running server, never HTTP's insides.
"""
