import sys

values = {
    "none": None,
    "zero": 0,
    "seven": 7,
    "big": 300,
    "negative": -1,
    "text": "a last word",
    "tuple": ("a", 1),
    "object": 3.5,
    "true": True,
    "empty": "",
}
print("before", sys.argv[1])
sys.exit(values[sys.argv[1]])
