import multiprocessing
import sys


class Value:
    def __init__(self, number):
        self.number = number


def square(value):
    return value.number**2, __name__, sys.argv, sys.path[0], __file__


if __name__ == "__main__":
    print(sys.argv)
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        print(pool.map(square, [Value(number) for number in range(3)]))
    process = context.Process(target=sys.exit, args=(4,))
    process.start()
    process.join()
    print(process.exitcode)
else:
    assert __name__ == "__mp_main__", __name__
