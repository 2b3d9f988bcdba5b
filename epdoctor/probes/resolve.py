"""What getaddrinfo says to the names in PARAMS["names"] and to the node's own. Runs on the node; see
epdoctor/facts/network.py. Emits (name, {"addresses": [...]} or {"error": text, "code": number}) as answers
come, so that a dead name server costs only the names that need it. ("", own host name) comes first."""

import socket
import threading

own = socket.gethostname()
emit("", own)
pending = [own] + [name for name in PARAMS.get("names", ()) if name != own]
pending.reverse()
lock = threading.Lock()


def is_address(name):
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in name else socket.AF_INET, name)
        return True
    except (OSError, ValueError):
        return False


def ask(name):
    try:
        answers = socket.getaddrinfo(name, None, 0, socket.SOCK_STREAM)
    except socket.gaierror as error:
        return {"error": str(error.args[-1]), "code": error.args[0]}
    except (OSError, UnicodeError, ValueError) as error:
        return {"error": str(error), "code": 0}
    addresses = []
    for answer in answers:
        if answer[4][0] not in addresses:
            addresses.append(answer[4][0])
    return {"addresses": addresses}


def work():
    while True:
        with lock:
            if not pending:
                return
            name = pending.pop()
        if is_address(name):
            continue
        answer = ask(name)
        with lock:
            emit(name, answer)


threads = [threading.Thread(target=work) for _ in range(min(8, len(pending)) - 1)]
for thread in threads:
    thread.start()
work()
for thread in threads:
    thread.join()
