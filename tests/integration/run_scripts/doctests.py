"""A module with an example.

>>> 1 + 1
2
>>> double(2)
5
"""


def double(number):
    """Return the double.

    >>> double(2)
    4
    """
    return number * 2


if __name__ == "__main__":
    import doctest

    print(doctest.testmod())
