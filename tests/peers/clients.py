"""aiomqtt against a gateway: clients.py PORT. A burst, both versions, a retained value, a will."""

import asyncio
import sys

import aiomqtt

PORT = int(sys.argv[1])
BURST = 5_000


async def both_versions(version):
    topic = f"aio/{version}"
    async with aiomqtt.Client("127.0.0.1", PORT, protocol=version) as client:
        await client.subscribe(f"{topic}/#", qos=1)
        await client.publish(f"{topic}/kept", "value", qos=1, retain=True)
        for n in range(BURST):
            await client.publish(f"{topic}/x", str(n), qos=1)
        got = []
        async for message in client.messages:
            got.append((str(message.topic), message.payload.decode()))
            if len(got) == BURST + 1:
                break
    wanted = [(f"{topic}/kept", "value")] + [(f"{topic}/x", str(n)) for n in range(BURST)]
    assert got == wanted, f"{version}: each once, in order"
    async with aiomqtt.Client("127.0.0.1", PORT, protocol=version) as client:
        await client.subscribe(f"{topic}/kept")
        message = await anext(client.messages)
        assert message.retain and message.payload == b"value"


async def main():
    for version in (aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5):
        await asyncio.wait_for(both_versions(version), 120)
    print("aiomqtt: ok")


asyncio.run(main())
