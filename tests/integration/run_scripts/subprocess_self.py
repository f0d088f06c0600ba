import subprocess
import sys

if len(sys.argv) > 1:
    print("child", sys.argv)
else:
    print(subprocess.run([sys.executable, __file__, "again"], capture_output=True, text=True, check=True).stdout, end="")
    print(subprocess._args_from_interpreter_flags())
