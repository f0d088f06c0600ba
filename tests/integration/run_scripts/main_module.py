"""Docstring of main."""

import sys

main = sys.modules["__main__"]
print(list(globals()))
print({name: getattr(main, name) for name in ("__name__", "__doc__", "__package__", "__spec__", "__file__")})
print(type(__loader__).__name__, __loader__.name, __loader__.path, __builtins__, globals().get("__cached__", "absent"))
print(globals().get("__annotations__", "absent"), vars(main) is globals(), main.__dict__ is sys._getframe().f_globals)
x: int = 1
print(__annotations__)
