import faulthandler

faulthandler.enable()
print("before", flush=True)
faulthandler._sigsegv()
