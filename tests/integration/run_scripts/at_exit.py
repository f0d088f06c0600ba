import atexit
import threading


class Noisy:
    def __del__(self):
        print("destroyed", self.name)

    def __init__(self, name):
        self.name = name


def last():
    print("atexit last", "__file__" in globals(), sorted(name for name in globals() if name.startswith("__")))


atexit.register(last)
atexit.register(print, "atexit first")
keeper = Noisy("module level")
_private = Noisy("private")
keeper.cycle = keeper


def outlive():
    threading.main_thread().join()
    print("thread", threading.main_thread().is_alive())


threading.Thread(target=outlive).start()
print("end of main")
