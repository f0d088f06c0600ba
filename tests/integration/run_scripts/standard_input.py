import sys

print("read:", sys.stdin.read(), sys.stdin.name, input is not None)
