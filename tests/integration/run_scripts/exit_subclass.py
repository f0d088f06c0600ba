class Quit(SystemExit):
    @property
    def code(self):
        return 9


raise Quit("ignored")
