import sys


class Broken(Exception):
    pass


def inner():
    raise KeyError("inner")


def outer():
    try:
        inner()
    except KeyError as error:
        raise Broken("outer") from error


print("on stdout")
print("on stderr", file=sys.stderr)
try:
    outer()
except Broken:
    {}["context"]
