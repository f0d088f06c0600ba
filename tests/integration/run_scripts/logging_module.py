import logging

logging.basicConfig(format="%(name)s %(module)s %(funcName)s %(lineno)d %(message)s %(pathname)s")
logging.warning("a warning")
logging.getLogger(__name__).error("an error")
