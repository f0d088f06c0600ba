import importlib
import sys

if __name__ == "__main__":
    again = importlib.import_module("reimport_main")
    print(again.__spec__.name, again is not sys.modules["__main__"], again.__file__ == __file__)
    try:
        importlib.reload(sys.modules["__main__"])
    except ImportError as error:
        print("reload:", error)
