"""Looks with vncdotool: address, encoding, file to capture to, picture to wait for."""

import sys

from vncdotool import api
from vncdotool.client import VNCDoToolClient
from vncdotool.rfb import Encoding

address, encoding, captured, awaited, password = sys.argv[1:]
VNCDoToolClient.encoding = Encoding(int(encoding))
client = api.connect(address, password=password, timeout=60)
client.captureScreen(captured)
client.mouseMove(123, 45)
client.mousePress(1)
client.keyPress("x")
client.expectScreen(awaited, 0)
client.captureScreen(captured + "-2.png")
client.disconnect()
api.shutdown()
