import sys

del sys.modules["__main__"]
sys.modules["__main__"] = sys
raise ValueError("main is gone")
