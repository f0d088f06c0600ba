import sys

sys.stdout.write("written first, flushed late\n")
raise ValueError("written second")
