"""A process whose memory lock stays taken, as anybody can make one who may mount FUSE: its own file system never
answers a write. One thread unmaps a written page and waits for that; the next that wants the lock waits for it, and
whoever reads the process's cmdline, environ or maps waits behind both (as `ps` does).

stuck.py MOUNTPOINT COMM UID: ends with its standard input.
"""
import ctypes
import os
import select
import struct
import sys
import threading
import time

INIT, LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE, BATCH_FORGET = 26, 1, 2, 3, 14, 15, 16, 42
ENOSYS = 38

where, comm, uid = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

device = os.open("/dev/fuse", os.O_RDWR)
options = "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % device
if libc.mount(b"stuck", where.encode(), b"fuse", 0, options.encode()):
    sys.exit("mount: " + os.strerror(ctypes.get_errno()))


def attributes(node):
    mode = 0o40755 if node == 1 else 0o100666
    return struct.pack("<6Q3I7I", node, 4096, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(operation, node):
    if operation == INIT:
        return 0, struct.pack("<IIIIHHII", 7, 31, 0, 0, 12, 12, 4096, 1) + bytes(36)
    if operation == LOOKUP:
        return 0, struct.pack("<4Q2I", 2, 0, 3600, 3600, 0, 0) + attributes(2)
    if operation == GETATTR:
        return 0, struct.pack("<QII", 3600, 0, 0) + attributes(node)
    if operation == OPEN:
        return 0, struct.pack("<QII", 1, 0, 0)
    if operation == READ:
        return 0, bytes(4096)
    return -ENOSYS, b""


def serve():
    while True:
        ready, _, _ = select.select([device, 0], [], [])
        if 0 in ready and not os.read(0, 1):
            return
        if device not in ready:
            continue
        _, operation, unique, node = struct.unpack_from("<IIQQ", os.read(device, 1 << 20))
        if operation in (WRITE, FORGET, BATCH_FORGET):
            continue
        error, body = answer(operation, node)
        os.write(device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)


if os.fork() == 0:
    try:
        serve()
    finally:
        # With the last descriptor of the device goes the connection, and whoever waits goes on.
        os._exit(0)
# It would keep its own file system from ending: somebody's sync can make the first write below wait as well.
os.close(device)
os.setgid(uid)
os.setuid(uid)
libc.prctl(15, comm, 0, 0, 0)  # PR_SET_NAME: not its own file, which is root's once the uid has changed
file = os.open(where + "/file", os.O_RDWR)
one, other = (libc.mmap(None, 4096, 3, 1, file, 0) for _ in range(2))
libc.memset(one, 1, 1)
threading.Thread(target=libc.munmap, args=(one, 4096)).start()
time.sleep(0.2)
threading.Thread(target=libc.memset, args=(other, 1, 1)).start()
time.sleep(0.2)
libc.munmap(other, 4096)
os._exit(0)
