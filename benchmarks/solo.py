"""Something that is measured by itself, in a process of its own; started by `benchmarks.__main__`."""

from __future__ import annotations

import importlib
import sys

from benchmarks.worker import peak_bytes, say


def main() -> None:
    module, name = sys.argv[1:]
    values = importlib.import_module(module).MEASUREMENTS[name]()
    say({"values": values, "peak_bytes": peak_bytes()})


if __name__ == "__main__":
    main()
