import sys

print(sys.excepthook is sys.__excepthook__, sys.exc_info(), [name for name in vars(sys) if name.startswith("last_")])
print(sys.unraisablehook is sys.__unraisablehook__, sys.displayhook is sys.__displayhook__)
