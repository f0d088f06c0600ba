import sys

print(sys.argv, sys.path[0], __file__, sys.flags)
