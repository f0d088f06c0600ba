from multiprocessing import spawn

if __name__ == "__main__":
    data = spawn.get_preparation_data("child")
    data.pop("authkey")
    print(data)
    print(spawn.get_command_line(pipe_handle=3))
