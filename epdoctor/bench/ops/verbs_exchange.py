"""One end of RC queue pairs on this node's rails, by ctypes over libibverbs: PARAMS

rails     [{"rail": N, "device": "mlx5_0", "port": 1, "gid_index": 3, "peers": [key, ...]}]; gid_index -1: by LID
bytes     written to each peer, one slot for each of them; register_bytes: least size of the memory region
limit_s   for the writes together

Emits for each rail {"rail", "step", "errno", "text"} where a step fails, or {"rail", "lid", "gid", "mtu", "rkey",
"qps": {key: {"qpn", "psn", "addr"}}}; then {"phase": "ready"} and hears {"connect": [{"rail", "key", "mtu", and the
peer's "qpn", "psn", "lid", "gid", "addr", "rkey"}]}; emits failed steps with "key", {"phase": "connected"}; hears
anything; writes; emits {"rail", "key", "status", "text", "us"} for each and {"phase": "written"}; hears anything;
emits {"rail", "key", "right"} for what has arrived, and ends.

Layouts: infiniband/verbs.h of rdma-core, unchanged since libibverbs 1.0 where used here (its ABI is versioned)."""

import ctypes
import errno
import os
import struct
import time

TIMEOUT, RETRIES = 16, 5
# 4.096 us x 2^16 = 0.27 s a try. Seven retries would mean "for ever" to Soft-RoCE.
ACCESS = 1 | 2 | 4  # local write, remote write, remote read
RC, RDMA_WRITE, SIGNALED = 2, 0, 2
INIT, RTR, RTS = 1, 2, 3
STATE, ACCESS_FLAGS, PKEY_INDEX, PORT = 1, 1 << 3, 1 << 4, 1 << 5
AV, PATH_MTU, QP_TIMEOUT, RETRY_CNT, RNR_RETRY, RQ_PSN = 1 << 7, 1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12
MAX_RD, MIN_RNR, SQ_PSN, MAX_DEST_RD, DEST_QPN = 1 << 13, 1 << 15, 1 << 16, 1 << 17, 1 << 20
MTUS = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}
POLL_CQ, POST_SEND = 11, 25  # places in struct ibv_context_ops

u8, u16, u32, u64, i32 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int
pointer = ctypes.c_void_p


class Context(ctypes.Structure):
    _fields_ = [("device", pointer), ("ops", pointer * 32)]


class PortAttr(ctypes.Structure):
    _fields_ = [
        ("state", i32), ("max_mtu", i32), ("active_mtu", i32), ("gid_tbl_len", i32), ("caps", u32),
        ("max_msg_sz", u32), ("bad_pkeys", u32), ("qkey_viol", u32), ("pkey_tbl_len", u16), ("lid", u16),
        ("sm_lid", u16), ("rest", u8 * 90),
    ]  # fmt: skip


class Capacity(ctypes.Structure):
    _fields_ = [(name, u32) for name in ("send_wr", "recv_wr", "send_sge", "recv_sge", "inline_data")]


class QpInit(ctypes.Structure):
    _fields_ = [
        ("context", pointer), ("send_cq", pointer), ("recv_cq", pointer), ("srq", pointer), ("cap", Capacity),
        ("qp_type", i32), ("sq_sig_all", i32),
    ]  # fmt: skip


class Address(ctypes.Structure):
    _fields_ = [
        ("dgid", u8 * 16), ("flow_label", u32), ("sgid_index", u8), ("hop_limit", u8), ("traffic_class", u8),
        ("dlid", u16), ("sl", u8), ("src_path_bits", u8), ("static_rate", u8), ("is_global", u8), ("port", u8),
    ]  # fmt: skip


class QpAttr(ctypes.Structure):
    _fields_ = [
        ("state", i32), ("cur_state", i32), ("path_mtu", i32), ("mig_state", i32), ("qkey", u32), ("rq_psn", u32),
        ("sq_psn", u32), ("dest_qpn", u32), ("access", u32), ("cap", Capacity), ("ah", Address), ("alt_ah", Address),
        ("pkey_index", u16), ("alt_pkey_index", u16), ("sqd_notify", u8), ("draining", u8), ("max_rd", u8),
        ("max_dest_rd", u8), ("min_rnr", u8), ("port", u8), ("timeout", u8), ("retry_cnt", u8), ("rnr_retry", u8),
        ("alt_port", u8), ("alt_timeout", u8), ("rate_limit", u32), ("rest", u32),
    ]  # fmt: skip


class Sge(ctypes.Structure):
    _fields_ = [("addr", u64), ("length", u32), ("lkey", u32)]


class SendWr(ctypes.Structure):
    _fields_ = [
        ("wr_id", u64), ("next", pointer), ("sg_list", ctypes.POINTER(Sge)), ("num_sge", i32), ("opcode", i32),
        ("flags", u32), ("imm", u32), ("remote_addr", u64), ("rkey", u32), ("rest", u8 * 76),
    ]  # fmt: skip


class Completion(ctypes.Structure):
    _fields_ = [("wr_id", u64), ("status", i32), ("opcode", i32), ("vendor", u32), ("rest", u8 * 28)]


class MemoryRegion(ctypes.Structure):
    _fields_ = [
        ("context", pointer), ("pd", pointer), ("addr", pointer), ("length", ctypes.c_size_t), ("handle", u32),
        ("lkey", u32), ("rkey", u32),
    ]  # fmt: skip


class Qp(ctypes.Structure):
    _fields_ = [
        ("context", pointer), ("qp_context", pointer), ("pd", pointer), ("send_cq", pointer), ("recv_cq", pointer),
        ("srq", pointer), ("handle", u32), ("qp_num", u32),
    ]  # fmt: skip


class StepError(Exception):
    """A step failed: (step, errno, words)."""


def load():
    verbs = ctypes.CDLL("libibverbs.so.1", use_errno=True)
    verbs.ibv_get_device_list.restype = ctypes.POINTER(pointer)
    verbs.ibv_get_device_name.restype = ctypes.c_char_p
    verbs.ibv_wc_status_str.restype = ctypes.c_char_p
    for name in ("ibv_open_device", "ibv_alloc_pd", "ibv_reg_mr", "ibv_create_cq", "ibv_create_qp"):
        getattr(verbs, name).restype = pointer
    return verbs


def made(step, found):
    if not found:
        number = ctypes.get_errno()
        raise StepError(step, number, os.strerror(number))
    return found


def done(step, status):
    if status:
        number = status if status > 0 else ctypes.get_errno()
        raise StepError(step, number, os.strerror(number))


class Rail(object):
    """An opened device with its memory region and a queue pair for each peer."""

    def __init__(self, verbs, plan, slot):
        self.verbs, self.number, self.slot, self.gid_index = verbs, plan["rail"], slot, plan["gid_index"]
        self.port = plan["port"]
        count = ctypes.c_int(0)
        devices = made("list devices", verbs.ibv_get_device_list(ctypes.byref(count)))
        names = {verbs.ibv_get_device_name(pointer(devices[at])): devices[at] for at in range(count.value)}
        if plan["device"].encode() not in names:
            raise StepError("list devices", errno.ENODEV, "libibverbs does not list %s" % plan["device"])
        device = names[plan["device"].encode()]
        self.context = made("open", verbs.ibv_open_device(pointer(device)))
        self.table = ctypes.cast(self.context, ctypes.POINTER(Context)).contents
        if self.table.device != device:
            raise StepError("open", errno.ENOSYS, "a libibverbs whose layout is not known")
        attr = PortAttr()
        done("query port", verbs.ibv_query_port(pointer(self.context), u8(self.port), ctypes.byref(attr)))
        self.lid, self.mtu = attr.lid, MTUS.get(attr.active_mtu, 1024)
        gid = (u8 * 16)()
        done(
            "query GID",
            verbs.ibv_query_gid(
                pointer(self.context), u8(self.port), ctypes.c_int(max(0, self.gid_index)), gid
            ),
        )
        self.gid = bytes(bytearray(gid))
        peers = plan["peers"]
        self.half = slot * max(1, len(peers))
        self.size = max(PARAMS["register_bytes"], 2 * self.half)
        self.memory = ctypes.create_string_buffer(self.size)
        self.base = ctypes.addressof(self.memory)
        pd = made("alloc PD", verbs.ibv_alloc_pd(pointer(self.context)))
        region = made(
            "register memory",
            verbs.ibv_reg_mr(pointer(pd), pointer(self.base), ctypes.c_size_t(self.size), ACCESS),
        )
        self.region = ctypes.cast(region, ctypes.POINTER(MemoryRegion)).contents
        self.cq = made(
            "create CQ", verbs.ibv_create_cq(pointer(self.context), 2 * len(peers) + 4, None, None, 0)
        )
        self.qps = {}
        for at, key in enumerate(peers):
            self.qps[key] = self.queue_pair(pd, at)
        self.peers = {}

    def queue_pair(self, pd, at):
        wanted = QpInit(send_cq=self.cq, recv_cq=self.cq, qp_type=RC, sq_sig_all=0)
        wanted.cap = Capacity(4, 4, 1, 1, 0)
        qp = made("create QP", self.verbs.ibv_create_qp(pointer(pd), ctypes.byref(wanted)))
        attr = QpAttr(state=INIT, pkey_index=0, port=self.port, access=ACCESS)
        done("QP to INIT", self.modify(qp, attr, STATE | PKEY_INDEX | PORT | ACCESS_FLAGS))
        number = ctypes.cast(qp, ctypes.POINTER(Qp)).contents.qp_num
        return {
            "qp": qp, "qpn": number, "psn": struct.unpack("<I", os.urandom(4))[0] & 0xFFFFFF,
            "from": self.base + at * self.slot, "addr": self.base + self.half + at * self.slot,
        }  # fmt: skip

    def modify(self, qp, attr, mask):
        return self.verbs.ibv_modify_qp(pointer(qp), ctypes.byref(attr), ctypes.c_int(mask))

    def said(self):
        return {
            "rail": self.number, "lid": self.lid, "gid": "".join("%02x" % byte for byte in bytearray(self.gid)),
            "mtu": self.mtu, "rkey": self.region.rkey,
            "qps": {key: {name: one[name] for name in ("qpn", "psn", "addr")} for key, one in self.qps.items()},
        }  # fmt: skip

    def connect(self, key, peer):
        one = self.qps[key]
        attr = QpAttr(
            state=RTR, path_mtu={size: code for code, size in MTUS.items()}[peer["mtu"]], dest_qpn=peer["qpn"],
            rq_psn=peer["psn"], max_dest_rd=1, min_rnr=12,
        )  # fmt: skip
        attr.ah.port, attr.ah.dlid = self.port, peer["lid"]
        if self.gid_index >= 0:
            attr.ah.is_global, attr.ah.sgid_index, attr.ah.hop_limit = 1, self.gid_index, 64
            attr.ah.dgid = (u8 * 16)(*bytearray.fromhex(peer["gid"]))
        mask = STATE | AV | PATH_MTU | DEST_QPN | RQ_PSN | MAX_DEST_RD | MIN_RNR
        done("QP to RTR", self.modify(one["qp"], attr, mask))
        attr = QpAttr(state=RTS, timeout=TIMEOUT, retry_cnt=RETRIES, rnr_retry=5, sq_psn=one["psn"], max_rd=1)
        mask = STATE | QP_TIMEOUT | RETRY_CNT | RNR_RETRY | SQ_PSN | MAX_RD
        done("QP to RTS", self.modify(one["qp"], attr, mask))
        self.peers[key] = peer

    def write(self, key, number):
        one, peer = self.qps[key], self.peers[key]
        ctypes.memmove(one["from"], pattern(one["qpn"], self.slot), self.slot)
        sge = Sge(one["from"], self.slot, self.region.lkey)
        wr = SendWr(wr_id=number, num_sge=1, opcode=RDMA_WRITE, flags=SIGNALED, remote_addr=peer["addr"])
        wr.sg_list, wr.rkey = ctypes.pointer(sge), peer["rkey"]
        bad = pointer()
        post = ctypes.CFUNCTYPE(
            i32, pointer, ctypes.POINTER(SendWr), ctypes.POINTER(pointer), use_errno=True
        )(self.table.ops[POST_SEND])
        done("post write", post(one["qp"], ctypes.byref(wr), ctypes.byref(bad)))

    def poll(self):
        """Completions that are there: [(wr_id, status)]."""
        found = (Completion * 16)()
        poll = ctypes.CFUNCTYPE(i32, pointer, i32, ctypes.POINTER(Completion))(self.table.ops[POLL_CQ])
        count = poll(self.cq, 16, found)
        return [(found[at].wr_id, found[at].status) for at in range(max(0, count))]

    def arrived(self, key):
        start = self.qps[key]["addr"]
        return ctypes.string_at(start, self.slot) == pattern(self.peers[key]["qpn"], self.slot)


def pattern(qpn, size):
    return struct.pack("<I", qpn ^ 0x5EED0000) * (size // 4)


def failed(rail, step, key=None):
    found = {
        "rail": rail,
        "step": step.args[0],
        "errno": errno.errorcode.get(step.args[1], str(step.args[1])),
    }
    found["text"] = step.args[2]
    if key is not None:
        found["key"] = key
    emit(found)


def write_all(rails):
    """Post every write, then poll until each has ended or the time is over."""
    pending = {}
    began = time.time()
    for rail in rails.values():
        for key in list(rail.peers):
            number = len(pending) + 1
            try:
                rail.write(key, number)
            except StepError as step:
                failed(rail.number, step, key)
                continue
            pending[number] = (rail, key, time.time())
    waiting = set(pending)
    while waiting and time.time() - began < PARAMS["limit_s"]:
        idle = True
        for rail in rails.values():
            for number, status in rail.poll():
                idle = False
                if number in waiting:
                    waiting.discard(number)
                    _, key, posted = pending[number]
                    words = rail.verbs.ibv_wc_status_str(status).decode("ascii", "replace")
                    us = round((time.time() - posted) * 1e6)
                    emit({"rail": rail.number, "key": key, "status": status, "text": words, "us": us})
        if idle:
            time.sleep(0.001)
    for number in waiting:
        rail, key, _ = pending[number]
        emit({"rail": rail.number, "key": key, "status": -1, "text": "not completed in time"})


def main():
    try:
        verbs = load()
    except OSError as error:
        emit({"missing": "libibverbs.so.1 (%s)" % error})
        return
    rails = {}
    for plan in PARAMS["rails"]:
        try:
            rails[plan["rail"]] = Rail(verbs, plan, PARAMS["bytes"])
            emit(rails[plan["rail"]].said())
        except StepError as step:
            failed(plan["rail"], step)
    emit({"phase": "ready"})
    for peer in hear()["connect"]:
        rail = rails.get(peer["rail"])
        if rail is None:
            continue
        try:
            rail.connect(peer["key"], peer)
        except StepError as step:
            failed(peer["rail"], step, peer["key"])
    emit({"phase": "connected"})
    hear()
    write_all(rails)
    emit({"phase": "written"})
    hear()
    for rail in rails.values():
        for key in rail.peers:
            emit({"rail": rail.number, "key": key, "right": rail.arrived(key)})


main()
