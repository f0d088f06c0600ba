import warnings


def old():
    warnings.warn("old", DeprecationWarning, stacklevel=2)
    warnings.warn("user")


old()
