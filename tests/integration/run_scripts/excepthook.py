import sys
import traceback


def hook(kind, error, trace):
    print("hook", kind.__name__, error, [frame.name for frame in traceback.extract_tb(trace)], sys.exc_info())
    print(sys.last_type, sys.last_value is error, sys.last_traceback is trace)


sys.excepthook = hook
raise ValueError("to the hook")
