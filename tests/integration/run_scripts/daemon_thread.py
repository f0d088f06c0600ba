import threading

started = threading.Event()


def work():
    started.set()
    threading.Event().wait()


threading.Thread(target=work, daemon=True).start()
started.wait()
print("main ends, daemon does not")
