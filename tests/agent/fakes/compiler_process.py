"""The real compiler with a snapshot blob that is the document itself: `compiler_process.py DIR`.

When DIR holds `compiler.json` it says how to misbehave: {"exit": 3}.
"""

import json
import sys
from pathlib import Path

from meshfast.agent import compiler

DIRECTORY = Path(sys.argv[1])


class PlainSnapshots:
    def build(self, document: bytes) -> bytes:
        return document

    def describe(self, blob: bytes) -> str:
        return blob.decode()


def look_up(host: str) -> list[str]:
    answer = json.loads((DIRECTORY / "names.json").read_text()).get(host, "fail")
    if not isinstance(answer, list):
        raise OSError(2, "Name or service not known")
    return answer


def main() -> int:
    misbehaviour = DIRECTORY / "compiler.json"
    if misbehaviour.exists():
        return int(json.loads(misbehaviour.read_text())["exit"])
    vars(compiler)["look_up"] = look_up
    return compiler.main(PlainSnapshots())


if __name__ == "__main__":
    sys.exit(main())
