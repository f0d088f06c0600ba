import sys
import traceback


def deep():
    traceback.print_stack(file=sys.stdout)


deep()
