"""A cable with time in it: two TUN devices, each packet of one comes out of the other so many milliseconds later.

Arguments: milliseconds, the two devices' names. Says `ready` once they exist; they are gone when its standard input ends.
"""

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000


def tun(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def relay(delay, first, second):
    under_way = {first: deque(), second: deque()}
    other = {first: second, second: first}
    while True:
        due = [packets[0][0] for packets in under_way.values() if packets]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        readable, _, _ = select.select([0, first, second], [], [], wait)
        if 0 in readable and not os.read(0, 4096):
            return
        for fd in (first, second):
            while fd in readable:
                try:
                    packet = os.read(fd, 65536)
                except BlockingIOError:
                    break
                under_way[other[fd]].append((time.monotonic() + delay, packet))
        now = time.monotonic()
        for fd, packets in under_way.items():
            while packets and packets[0][0] <= now:
                try:
                    os.write(fd, packets.popleft()[1])
                except OSError:
                    pass  # a device that is down loses packets


devices = [tun(name) for name in sys.argv[2:4]]
print("ready", flush=True)
relay(float(sys.argv[1]) / 1000, *devices)
