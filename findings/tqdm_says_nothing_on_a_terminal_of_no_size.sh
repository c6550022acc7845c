#!/usr/bin/env bash
# tqdm 4.70.1 (and, as far back as was tried, 4.66.0): on a terminal that gives its size as 0 rows and 0 columns, as a fresh
# pseudo-terminal does, a bar prints nothing but the newline at its end. A guess is the plain counter without a bar that it prints
# where it learns no size at all.
# Seen: 0 x 0: "\r\n"; 24 x 80: a bar with 3/3.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tqdm==4.70.1
"$work/venv/bin/python" - <<'PY'
import fcntl
import os
import pty
import struct
import termios

import tqdm


def printed(rows, columns):
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        for _ in tqdm.tqdm(range(3)):
            pass
        os._exit(0)
    found = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        if not part:
            break
        found += part
    os.waitpid(pid, 0)
    return found


nothing, bar = printed(0, 0), printed(24, 80)
print(tqdm.__version__, nothing, bar[-40:])
assert nothing.strip() == b""
assert b"3/3" in bar
PY
