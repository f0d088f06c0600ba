import threading

gate = threading.Event()


def work():
    threading.main_thread().join()
    print("after main", threading.main_thread().is_alive(), "__file__" in globals())


threading.Thread(target=work).start()
