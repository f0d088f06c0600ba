import sys

error = ValueError("with notes")
if sys.version_info >= (3, 11):
    error.add_note("a note")
    raise ExceptionGroup("group", [error, TypeError("other")])
raise error
