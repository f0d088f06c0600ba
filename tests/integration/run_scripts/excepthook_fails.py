import sys


def hook(kind, error, trace):
    raise TypeError("hook is broken")


sys.excepthook = hook
raise ValueError("to the broken hook")
