"""paho-mqtt as a peer: publishes and receives with QoS 0 and 1, a retained message, a will, a persistent session. Prints `ok` at the end."""
import socket
import sys
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

PORT, VERSION = int(sys.argv[1]), int(sys.argv[2])
FIVE = VERSION == 5


class Peer:
    def __init__(self, client_id, clean=True, will=None):
        kind = mqtt.MQTTv5 if FIVE else mqtt.MQTTv311
        args = {} if FIVE else {"clean_session": clean}
        self.c = mqtt.Client(CallbackAPIVersion.VERSION2, client_id, protocol=kind, **args)
        self.messages, self.acks, self.change = [], set(), threading.Condition()
        self.connack = None
        self.c.on_connect = lambda _c, _u, flags, reason, _p: self.note(lambda: setattr(self, "connack", (flags.session_present, reason.value)))
        self.c.on_message = lambda _c, _u, m: self.note(lambda: self.messages.append(m))
        self.c.on_subscribe = lambda _c, _u, mid, _r, _p: self.note(lambda: self.acks.add(("sub", mid)))
        self.c.on_publish = lambda _c, _u, mid, _r, _p: self.note(lambda: self.acks.add(("pub", mid)))
        if will:
            self.c.will_set(*will)
        properties = None
        if FIVE:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if clean else 3600
        more = {"clean_start": clean, "properties": properties} if FIVE else {}
        self.c.connect("127.0.0.1", PORT, 30, **more)
        self.c.loop_start()
        self.until(lambda: self.connack)
        assert self.connack[1] == 0, self.connack

    def note(self, change):
        with self.change:
            change()
            self.change.notify_all()

    def until(self, done):
        with self.change:
            assert self.change.wait_for(done, 10), f"it did not come: {[m.payload for m in self.messages]}"

    def subscribe(self, filter_, qos=1, **options):
        o = {"options": SubscribeOptions(qos=qos, **options)} if FIVE else {"qos": qos}
        _, mid = self.c.subscribe(filter_, **o)
        self.until(lambda: ("sub", mid) in self.acks)

    def publish(self, topic, payload, qos=1, retain=False):
        mid = self.c.publish(topic, payload, qos, retain).mid
        self.until(lambda: ("pub", mid) in self.acks)

    def expect(self, *payloads):
        self.until(lambda: len(self.messages) >= len(payloads))
        got = [m.payload.decode() for m in self.messages]
        assert got == list(payloads), f"{got}, expected {payloads}"
        taken, self.messages = self.messages, []
        return taken

    def close(self):
        self.c.disconnect()
        self.c.loop_stop()


a, b = Peer(f"a{VERSION}"), Peer(f"b{VERSION}")
a.subscribe("paho/+/x")
b.publish("paho/1/x", "one")
b.publish("paho/2/x", "zero", qos=0)
b.publish("paho/2/y", "elsewhere")
b.publish("paho/3/x", "three")
got = a.expect("one", "zero", "three")
assert [m.qos for m in got] == [1, 0, 1]

b.publish("kept/a", "retained", retain=True)
a.subscribe("kept/#")
(m,) = a.expect("retained")
assert m.retain
b.publish("kept/a", "", retain=True)
a.expect("")

if FIVE:
    a.subscribe("own/#", noLocal=True)
    a.publish("own/x", "mine")
    b.publish("own/x", "theirs")
    a.expect("theirs")

a.subscribe("will/#")
dying = Peer(f"dying{VERSION}", will=("will/x", "gone", 1, False))
dying.c.loop_stop()
dying.c.socket().shutdown(socket.SHUT_RDWR)
a.expect("gone")

keeper = Peer(f"keeper{VERSION}", clean=False)
keeper.subscribe("keep/#")
keeper.close()
for n in range(20):
    b.publish("keep/x", str(n))
keeper = Peer(f"keeper{VERSION}", clean=False)
assert keeper.connack[0], "the session is present"
keeper.expect(*[str(n) for n in range(20)])

for payload in ("x" * 200_000, "ä€𝄞"):
    b.publish("paho/4/x", payload)
    a.expect(payload)
for peer in (a, b, keeper):
    peer.close()
time.sleep(0.1)
print("ok")
