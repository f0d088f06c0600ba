class Bad:
    def __del__(self):
        raise ValueError("in a finalizer")


bad = Bad()
del bad
keep = Bad()
