import sys

sys.stderr = None
raise ValueError("nobody can see this")
