import os
import sys

os.chdir("/")
import helper

print(os.path.isabs(__file__), sys.path[0], helper.VALUE)
