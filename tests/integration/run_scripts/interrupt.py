import atexit
import os
import signal

atexit.register(print, "atexit after the interrupt")
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**9):
        pass
finally:
    print("unwinding")
