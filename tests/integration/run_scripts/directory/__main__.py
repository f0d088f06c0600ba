import sys

import beside

print(beside.VALUE, __file__, __package__, __spec__.name, sys.argv, sys.path[0], __name__)
sys.exit(4)
