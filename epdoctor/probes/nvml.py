"""GPUs by NVML. Python 3.6, runs on the node; `emit(key, value)` is given.

Rows: ["driver_version", str], ["cuda_driver_version", int as NVML has it, 13000 = 13.0], ["count", int],
["gpu.<index>", {field: value, "errors": {field: text}}], ["p2p", [[i, j, status], ...]] and, where NVML does
not answer, ["error", {"call", "code", "text"}]. Values stay as NVML gives them (numbers).

Only cheap getters. Measured on 2 x H200, driver 580: P2P status 1.4 ms of CPU a pair, NVLink error counters
15 ms a GPU (so they are not read), everything here about 12 ms a GPU.
"""

import pynvml as nv

# nvml.h; pynvml's own constant for READ is a tuple by a stray comma.
P2P_CAPS_INDEX_READ = 0
ECC_UNCORRECTED, ECC_VOLATILE, ECC_AGGREGATE = 1, 0, 1
FI_NVLINK_LINK_COUNT = 91
FI_NVLINK_GET_SPEED = 164
FI_NVLINK_GET_STATE = 165
MAX_LINKS = 18
MAX_PROCESSES = 64


def text(value):
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def number(field):
    """The value of one nvmlFieldValue, or None where the driver has none."""
    if field.nvmlReturn != 0:
        return None
    kinds = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
    try:
        return getattr(field.value, kinds[field.valueType])
    except (KeyError, AttributeError):
        return None


def fields_of(handle, wanted):
    return [number(value) for value in nv.nvmlDeviceGetFieldValues(handle, wanted)]


def links_of(handle):
    """One row a link that the GPU has: [index, active, speed in Mb/s, remote type, version]."""
    count = fields_of(handle, [FI_NVLINK_LINK_COUNT])[0]
    links = range(MAX_LINKS if count is None else min(int(count), 64))
    nv.nvmlDeviceGetNvLinkState(handle, 0)  # raises Not Supported where there is no NVLink
    values = fields_of(
        handle, [(what, i) for what in (FI_NVLINK_GET_STATE, FI_NVLINK_GET_SPEED) for i in links]
    )
    found = []
    for index in links:
        active = values[index]
        remote = version = None
        try:
            if active is None:
                active = nv.nvmlDeviceGetNvLinkState(handle, index)
            if active:
                remote = nv.nvmlDeviceGetNvLinkRemoteDeviceType(handle, index)
                version = nv.nvmlDeviceGetNvLinkVersion(handle, index)
        except nv.NVMLError as error:
            if error.value == 2 and active is None:  # Invalid Argument: no such link
                break
        found.append([index, active, values[len(links) + index], remote, version])
    return found


def fabric_of(handle):
    info = nv.c_nvmlGpuFabricInfo_v2_t()
    nv.nvmlDeviceGetGpuFabricInfoV(handle, nv.byref(info))
    return {
        "state": info.state,
        "status": info.status,
        "clique": info.cliqueId,
        "cluster": "".join("%02x" % byte for byte in bytearray(info.clusterUuid)),
        "health_mask": info.healthMask,
    }


def processes_of(handle):
    running = nv.nvmlDeviceGetComputeRunningProcesses(handle)
    return [[process.pid, process.usedGpuMemory] for process in running[:MAX_PROCESSES]]


def reasons_of(handle):
    if hasattr(nv, "nvmlDeviceGetCurrentClocksEventReasons"):
        try:
            return nv.nvmlDeviceGetCurrentClocksEventReasons(handle)
        except nv.NVMLError:
            pass  # drivers before 535 know the old name only
    return nv.nvmlDeviceGetCurrentClocksThrottleReasons(handle)


GETTERS = [
    ("name", lambda h: text(nv.nvmlDeviceGetName(h))),
    ("uuid", lambda h: text(nv.nvmlDeviceGetUUID(h))),
    ("bus_id", lambda h: text(nv.nvmlDeviceGetPciInfo(h).busId)),
    ("minor", lambda h: nv.nvmlDeviceGetMinorNumber(h)),
    ("vbios", lambda h: text(nv.nvmlDeviceGetVbiosVersion(h))),
    ("memory_total_bytes", lambda h: nv.nvmlDeviceGetMemoryInfo(h).total),
    ("bar1_total_bytes", lambda h: nv.nvmlDeviceGetBAR1MemoryInfo(h).bar1Total),
    ("compute_capability", lambda h: list(nv.nvmlDeviceGetCudaComputeCapability(h))),
    ("ecc", lambda h: list(nv.nvmlDeviceGetEccMode(h))),
    ("ecc_volatile", lambda h: nv.nvmlDeviceGetTotalEccErrors(h, ECC_UNCORRECTED, ECC_VOLATILE)),
    ("ecc_aggregate", lambda h: nv.nvmlDeviceGetTotalEccErrors(h, ECC_UNCORRECTED, ECC_AGGREGATE)),
    ("remapped_rows", lambda h: list(nv.nvmlDeviceGetRemappedRows(h))),
    ("mig", lambda h: list(nv.nvmlDeviceGetMigMode(h))),
    ("compute_mode", lambda h: nv.nvmlDeviceGetComputeMode(h)),
    ("persistence", lambda h: nv.nvmlDeviceGetPersistenceMode(h)),
    ("pcie_gen", lambda h: nv.nvmlDeviceGetCurrPcieLinkGeneration(h)),
    ("pcie_gen_max", lambda h: nv.nvmlDeviceGetMaxPcieLinkGeneration(h)),
    ("pcie_width", lambda h: nv.nvmlDeviceGetCurrPcieLinkWidth(h)),
    ("pcie_width_max", lambda h: nv.nvmlDeviceGetMaxPcieLinkWidth(h)),
    ("event_reasons", reasons_of),
    ("processes", processes_of),
    ("links", links_of),
    ("fabric", fabric_of),
]


def describe(handle):
    found, errors = {}, {}
    for name, getter in GETTERS:
        try:
            found[name] = getter(handle)
        except nv.NVMLError as error:
            errors[name] = str(error)
        except Exception as error:
            # A pynvml older or newer than the driver lacks functions: that costs the field only.
            errors[name] = "%s: %s" % (type(error).__name__, error)
    found["errors"] = errors
    return found


def status_between(first, second):
    try:
        return nv.nvmlDeviceGetP2PStatus(first, second, P2P_CAPS_INDEX_READ)
    except Exception:
        return -1


def peers(handles):
    """[i, j, status of reading]; -1: not told. Above four GPUs only the first with each, and neighbours."""
    rows = []
    for place, (i, first) in enumerate(handles):
        others = handles[place + 1 :]
        if place and len(handles) > 4:
            others = others[:1]
        rows.extend([i, j, status_between(first, second)] for j, second in others)
    return rows


def main():
    call = "nvmlInit"
    try:
        nv.nvmlInit()
        call = "nvmlSystemGetDriverVersion"
        emit("driver_version", text(nv.nvmlSystemGetDriverVersion()))
        call = "nvmlSystemGetCudaDriverVersion"
        emit("cuda_driver_version", nv.nvmlSystemGetCudaDriverVersion())
        call = "nvmlDeviceGetCount"
        count = nv.nvmlDeviceGetCount()
    except nv.NVMLError as error:
        emit("error", {"call": call, "code": error.value, "text": str(error)})
        raise  # a failed probe lets nvidia-smi try: its text may say more
    emit("count", count)
    handles = []
    for index in range(count):
        try:
            handle = nv.nvmlDeviceGetHandleByIndex(index)
        except nv.NVMLError as error:
            emit("gpu.%d" % index, {"errors": {"handle": str(error)}})
            continue
        handles.append((index, handle))
        emit("gpu.%d" % index, describe(handle))
    if len(handles) > 1:
        emit("p2p", peers(handles))
    nv.nvmlShutdown()


main()
