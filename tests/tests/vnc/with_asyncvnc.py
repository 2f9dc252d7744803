"""Looks with asyncvnc: port, file to capture to, picture to wait for, password."""

import asyncio
import sys

import asyncvnc
import numpy
from PIL import Image

port, captured, awaited, password = sys.argv[1:]


async def main():
    async with asyncvnc.connect("127.0.0.1", int(port), password=password) as client:
        Image.fromarray(await client.screenshot()).save(captured)
        client.mouse.move(123, 45)
        client.mouse.click()
        client.keyboard.press("Ctrl", "x")
        await client.drain()
        expected = numpy.asarray(Image.open(awaited).convert("RGBA"))
        while not numpy.array_equal(client.video.as_rgba(), expected):
            client.video.refresh()
            await client.read()


asyncio.run(asyncio.wait_for(main(), 60))
