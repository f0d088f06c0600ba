import helper

print(helper.__name__, helper.__file__, helper.VALUE, __import__("__main__").__file__)
