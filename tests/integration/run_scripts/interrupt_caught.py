import os
import signal

try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**9):
        pass
except KeyboardInterrupt:
    print("caught", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
