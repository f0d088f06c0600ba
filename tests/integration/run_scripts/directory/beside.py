VALUE = "in the directory"
