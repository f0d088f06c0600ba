import sys

from . import relative
from .inner import deep

print(relative.VALUE, deep.VALUE, __name__, __package__, __spec__.name, sys.argv, sys.path[0])
print(list(globals()))
