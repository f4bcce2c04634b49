"""Run one benchmark by its name: `python -m benchmarks NAME --help` tells its options."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> int:
    """Hand over to the module of that name."""
    names = sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")
    )
    for shared in ("record", "experiment"):
        names.remove(shared)
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"usage: python -m benchmarks NAME, one of {', '.join(names)}", file=sys.stderr)
        return 2
    name = sys.argv.pop(1)
    sys.argv[0] = f"python -m benchmarks {name}"
    importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
