import inspect
import linecache


def function():
    return "its source"


class Holder:
    attribute = 1


print(inspect.getsource(function), inspect.getsource(Holder), inspect.getfile(function), inspect.getmodule(function))
print(linecache.getline(__file__, 1), end="")
