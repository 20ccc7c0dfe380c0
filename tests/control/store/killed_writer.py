"""The process that test_killed.py kills: writes for ever, and says on stdout what is acknowledged.

Usage: killed_writer.py DIRECTORY ROUND. Four threads write at once, so that turns hold several
transactions. A line is written (by one write(2), so whole or not at all) only after `transact`
returned: `epoch n thread count`.
"""

import os
import sys
import threading
from pathlib import Path

from meshfast.control.store import Put, SqliteStore, Transaction

THREADS = 4


def write(store: SqliteStore, round_number: int, thread: int) -> None:
    count = 0
    while True:
        count += 1
        value = f"{round_number} {thread} {count}".encode()
        pair = Transaction((Put(f"{thread}/one", value), Put(f"{thread}/two", value)))
        at = store.transact(pair)
        os.write(1, f"{at.epoch} {at.n} {thread} {count}\n".encode())


def main() -> None:
    store = SqliteStore(Path(sys.argv[1]))
    for thread in range(THREADS):
        threading.Thread(target=write, args=(store, int(sys.argv[2]), thread), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
