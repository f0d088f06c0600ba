import io
import unittest


class Case(unittest.TestCase):
    def test_passes(self):
        self.assertTrue(True)

    @unittest.skip("on purpose")
    def test_is_skipped(self):
        raise AssertionError


if __name__ == "__main__":
    program = unittest.main(exit=False, testRunner=unittest.TextTestRunner(stream=io.StringIO()))
    print(program.result, program.module)
