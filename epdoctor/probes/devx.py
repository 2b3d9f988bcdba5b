"""What the mlx5 HCAs grant a program that opens them with DEVX, asked of libmlx5. Runs on the node; see facts/devx.py.

Each device is opened, asked one question (QUERY_HCA_CAP of the atomics, which only reads) and closed in a child of its
own, all at once: one that fails, hangs or crashes hides no other. Emits (device, {"devx": true} or {"devx": false,
"errno": why, "plain": ""} ("plain": errno of opening without DEVX, "" where that works), with "atomics": [operations,
sizes of QPs, sizes of DCTs, PCI fetch-add, PCI swap, PCI compare-swap] or "atomics_errno"), or (device, {"failed":
words}), or ("failed", words) where no device was asked. PARAMS: root (/sys/class), seconds.

libibverbs asks the kernel for each device's uverbs, and the kernel loads ib_uverbs where that is not there
(drivers/infiniband/core/device.c, ib_get_client_nl_info): so nothing is asked unless each device has one.
"""

import errno
import json
import os
import select
import signal
import struct
import time

ROOT = PARAMS.get("root", "/sys/class")
CAP = 16  # in the answer: status, three reserved bytes, syndrome, eight reserved bytes; then the capability


def read(path):
    try:
        with open(path) as file:
            return file.read(256).strip()
    except (OSError, ValueError):
        return ""


def names(path):
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def is_mlx5(device):
    folder = os.path.join(ROOT, "infiniband", device)
    try:
        # A subfunction's driver is mlx5_core.sf.
        return os.path.basename(os.readlink(folder + "/device/driver")).startswith("mlx5_core")
    except OSError:
        return device.startswith("mlx5") or read(folder + "/hca_type").startswith("MT")


def name_of(number):
    # Python calls 95 ENOTSUP, its other name.
    return "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, str(number))


def load():
    """(libibverbs, libmlx5), or raises OSError or AttributeError. libmlx5 first: its driver is registered then, and
    libibverbs loads no other one."""
    import ctypes

    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    mlx5 = ctypes.CDLL("libmlx5.so.1", use_errno=True)
    verbs = ctypes.CDLL("libibverbs.so.1", use_errno=True)
    verbs.ibv_get_device_list.restype = ctypes.POINTER(pointer)
    verbs.ibv_get_device_list.argtypes = [ctypes.POINTER(ctypes.c_int)]
    verbs.ibv_get_device_name.restype = ctypes.c_char_p
    for call in (verbs.ibv_get_device_name, verbs.ibv_open_device, verbs.ibv_close_device):
        call.argtypes = [pointer]
    verbs.ibv_open_device.restype = mlx5.mlx5dv_open_device.restype = pointer
    mlx5.mlx5dv_open_device.argtypes = [pointer, pointer]
    mlx5.mlx5dv_devx_general_cmd.argtypes = [pointer, ctypes.c_char_p, size, pointer, size]
    return verbs, mlx5


def listed(verbs):
    """Name -> struct ibv_device *. The list is kept: the children open what it names."""
    import ctypes

    count = ctypes.c_int(0)
    found = verbs.ibv_get_device_list(ctypes.byref(count))
    if not found:
        raise OSError("ibv_get_device_list: %s" % name_of(ctypes.get_errno()))
    devices = [found[at] for at in range(count.value)]
    return {verbs.ibv_get_device_name(device).decode("ascii", "replace"): device for device in devices}


def atomics(mlx5, context):
    """The answer to QUERY_HCA_CAP for MLX5_CAP_ATOMIC, current: what NVSHMEM's
    nvshmemt_ib_common_check_nic_ext_atomic_support asks. Layout: mlx5_ifc.h, query_hca_cap_out and atomic_caps."""
    import ctypes

    request = struct.pack(">HHHHQ", 0x100, 0, 0, 3 << 1 | 1, 0)
    answer = ctypes.create_string_buffer(CAP + 4096)
    ctypes.set_errno(0)
    status = mlx5.mlx5dv_devx_general_cmd(context, request, len(request), answer, len(answer))
    if status:
        return {"atomics_errno": name_of(status if status > 0 else ctypes.get_errno())}
    if ord(answer[0]):
        syndrome = struct.unpack_from(">I", answer, 4)[0]
        return {"atomics_errno": "firmware status 0x%x, syndrome 0x%x" % (ord(answer[0]), syndrome)}
    # Bits 0x90, 0xb0, 0xd0 and, from 0x280 on, three in a row.
    offsets = (0x12, 0x16, 0x1A, 0x50, 0x52, 0x54)
    return {"atomics": [struct.unpack_from(">H", answer, CAP + offset)[0] for offset in offsets]}


def ask(verbs, mlx5, device):
    import ctypes

    # struct mlx5dv_context_attr: u32 flags, u64 comp_mask, and in newer releases a pointer that comp_mask announces.
    wish = ctypes.create_string_buffer(struct.pack("@IQP", 1, 0, 0))  # MLX5DV_CONTEXT_FLAGS_DEVX
    found = {"devx": True}
    ctypes.set_errno(0)
    context = mlx5.mlx5dv_open_device(device, wish)
    if not context:
        found = {"devx": False, "errno": name_of(ctypes.get_errno()), "plain": ""}
        ctypes.set_errno(0)
        # Falls back to a context without DEVX by itself: shows whether DEVX alone was refused.
        context = verbs.ibv_open_device(device)
        if not context:
            found["plain"] = name_of(ctypes.get_errno())
            return found
    found.update(atomics(mlx5, context))
    verbs.ibv_close_device(context)
    return found


def started(verbs, mlx5, device):
    """(pid, descriptor) of a child that asks one device."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        os.write(writing, json.dumps(ask(verbs, mlx5, device)).encode("ascii"))
    except Exception as error:
        os.write(writing, json.dumps({"failed": str(error)[:200]}).encode("ascii"))
    finally:
        os._exit(0)


def collect(running, until):
    """Emit what each child answers, at its end or at the time limit."""
    texts = dict.fromkeys(running, b"")
    while texts:
        ready = select.select(list(texts), [], [], max(0, until - time.monotonic()))[0]
        for descriptor in ready or list(texts):
            part = os.read(descriptor, 4096) if ready else b""
            texts[descriptor] += part
            if part:
                continue
            device, pid = running[descriptor]
            text = texts.pop(descriptor)
            os.close(descriptor)
            if not ready:
                os.kill(pid, signal.SIGKILL)
            # A child that hangs in the kernel cannot be waited for.
            ended = os.waitpid(pid, 0 if ready else os.WNOHANG)[1]
            try:
                emit(device, json.loads(text.decode("ascii")))
            except ValueError:
                signal_number = os.WTERMSIG(ended) if ready and os.WIFSIGNALED(ended) else 0
                emit(
                    device, {"failed": "signal %d" % signal_number if signal_number else "no answer in time"}
                )


def main():
    devices = names(os.path.join(ROOT, "infiniband"))
    wanted = [device for device in devices if is_mlx5(device)][:64]
    if not wanted:
        return
    uverbs = os.path.join(ROOT, "infiniband_verbs")
    having = {read("%s/%s/ibdev" % (uverbs, name)) for name in names(uverbs)}
    lacking = [device for device in devices if device not in having]
    if lacking:
        emit("failed", "%s has no uverbs device (module ib_uverbs)" % lacking[0])
        return
    os.environ.pop("MLX5_DEBUG_FILE", None)  # libmlx5 would write to it
    try:
        verbs, mlx5 = load()
        known = listed(verbs)
    except (OSError, AttributeError) as error:
        emit("failed", str(error)[:200])
        return
    running = {}
    for device in wanted:
        if device in known:
            pid, descriptor = started(verbs, mlx5, known[device])
            running[descriptor] = device, pid
        else:
            emit(device, {"failed": "libibverbs does not list it"})
    collect(running, time.monotonic() + PARAMS.get("seconds", 4.0))


main()
