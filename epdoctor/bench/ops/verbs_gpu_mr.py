"""Register GPU memory on this node's HCAs, as GPUDirect RDMA does: PARAMS

gpus      [{"index": 0, "uuid": "GPU-...", "device": "mlx5_0"}]; bytes

For each GPU emits {"index", "device", "step", "errno" | "cuda", "text"} where the way to the memory fails, or
{"index", "device", "plain": errno name or "", "dmabuf": errno name or "", "host": errno name or ""}: what
ibv_reg_mr (needs nvidia-peermem), ibv_reg_dmabuf_mr, and ibv_reg_mr of as much host memory answer; "" is success.
{"missing": library} where libcuda or libibverbs is not there. Sources: CUDA driver API (cuMemAlloc,
cuMemGetHandleForAddressRange, CUDA 11.7), libibverbs ibv_reg_mr(3) and ibv_reg_dmabuf_mr(3) (rdma-core 34)."""

import ctypes
import errno
import os

ACCESS = 1 | 2 | 4  # local write, remote write, remote read
DMA_BUF_FD = 1  # CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD
pointer, u64, size_t = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t


class CudaError(Exception):
    """(call, number)"""


def cuda(library, name, *words):
    status = getattr(library, name)(*words)
    if status:
        raise CudaError(name, status)


def registered(verbs, name, *words):
    """ "" or the name of the errno; what was registered is let go again."""
    call = getattr(verbs, name, None)
    if call is None:
        return "ENOSYS"
    call.restype = pointer
    ctypes.set_errno(0)
    region = call(*words)
    if not region:
        number = ctypes.get_errno()
        return errno.errorcode.get(number, str(number))
    verbs.ibv_dereg_mr(pointer(region))
    return ""


def opened(verbs, wanted):
    """(context, PD) of a device. Raises OSError."""
    count = ctypes.c_int(0)
    devices = verbs.ibv_get_device_list(ctypes.byref(count))
    if not devices:
        raise OSError(ctypes.get_errno(), "list devices")
    for at in range(count.value):
        if verbs.ibv_get_device_name(pointer(devices[at])) == wanted.encode():
            context = verbs.ibv_open_device(pointer(devices[at]))
            if not context:
                raise OSError(ctypes.get_errno(), "open")
            pd = verbs.ibv_alloc_pd(pointer(context))
            if not pd:
                raise OSError(ctypes.get_errno(), "alloc PD")
            return pd
    raise OSError(errno.ENODEV, "list devices")


def one(driver, verbs, plan):
    found = {"index": plan["index"], "device": plan["device"]}
    size = size_t(PARAMS["bytes"])
    device, context, memory = ctypes.c_int(0), pointer(), u64(0)
    try:
        cuda(driver, "cuDeviceGet", ctypes.byref(device), plan["index"])
        cuda(driver, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        cuda(driver, "cuCtxSetCurrent", context)
        cuda(driver, "cuMemAlloc_v2", ctypes.byref(memory), size)
    except CudaError as error:
        found.update(step=error.args[0], cuda=error.args[1], text="CUDA error %d" % error.args[1])
        return found
    try:
        pd = opened(verbs, plan["device"])
    except OSError as error:
        found.update(
            step=error.args[1], errno=errno.errorcode.get(error.args[0], str(error.args[0])),
            text=os.strerror(error.args[0]),
        )  # fmt: skip
        return found
    host = ctypes.create_string_buffer(PARAMS["bytes"])
    found["host"] = registered(verbs, "ibv_reg_mr", pointer(pd), host, size, ACCESS)
    found["plain"] = registered(verbs, "ibv_reg_mr", pointer(pd), pointer(memory.value), size, ACCESS)
    handle = ctypes.c_int(-1)
    try:
        # The address range must be whole pages of 64 KiB, which cuMemAlloc gives for this size.
        cuda(
            driver,
            "cuMemGetHandleForAddressRange",
            ctypes.byref(handle),
            memory,
            size,
            DMA_BUF_FD,
            ctypes.c_ulonglong(0),
        )
    except CudaError as error:
        found["dmabuf"] = "CUDA error %d" % error.args[1]
    except AttributeError:
        found["dmabuf"] = "no cuMemGetHandleForAddressRange in libcuda"
    else:
        found["dmabuf"] = registered(
            verbs, "ibv_reg_dmabuf_mr", pointer(pd), u64(0), size, u64(memory.value), handle, ACCESS
        )
        os.close(handle.value)
    driver.cuMemFree_v2(memory)
    return found


def main():
    # Devices in the order of their PCI addresses, as nvidia-smi numbers them.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    libraries = []
    for name in ("libcuda.so.1", "libibverbs.so.1"):
        try:
            libraries.append(ctypes.CDLL(name, use_errno=True))
        except OSError:
            emit({"missing": name})
            return
    driver, verbs = libraries
    verbs.ibv_get_device_list.restype = ctypes.POINTER(pointer)
    verbs.ibv_get_device_name.restype = ctypes.c_char_p
    verbs.ibv_open_device.restype = verbs.ibv_alloc_pd.restype = pointer
    status = driver.cuInit(0)
    if status:
        emit({"step": "cuInit", "cuda": status, "text": "CUDA error %d" % status})
        return
    for plan in PARAMS["gpus"]:
        emit(one(driver, verbs, plan))


main()
