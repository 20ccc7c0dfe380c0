"""A process that writes its state for ever: `state_writer DIRECTORY FIRST`; killed by the test.

Content N is N and padding of N bytes modulo 40,000, so that a mixture of two shows. After each
write it says N on standard output: from then on N or something newer has to be found.
"""

import itertools
import os
import sys

from meshfast.agent.state import StateDirectory


def content(number: int) -> bytes:
    return f"{number} ".encode() + bytes([65 + number % 26]) * (number * 7919 % 40_000)


def main() -> None:
    state = StateDirectory(sys.argv[1])
    for number in itertools.count(int(sys.argv[2])):
        state.write_now("resources", content(number))
        os.write(1, f"{number}\n".encode())


if __name__ == "__main__":
    main()
