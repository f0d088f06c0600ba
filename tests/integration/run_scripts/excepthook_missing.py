import sys

del sys.excepthook
raise ValueError("to nobody")
