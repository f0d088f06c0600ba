from ..relative import VALUE as ABOVE

VALUE = "deep " + ABOVE
if __name__ == "__main__":
    raise ValueError("in a module run by -m")
