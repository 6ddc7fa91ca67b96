"""Makes the peers' record on a machine with GPUs: `python record.py FOLDER [ARGUMENT ...]`.

FOLDER is what `build.py` made. If it brought NCCL along, that one takes the place of torch's, unless `--torch-nccl` is
given. All other arguments are those of `lamport-rs bench`, and come last.
"""

from __future__ import annotations

import argparse
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_RESULTS = Path(__file__).resolve().parents[1] / "results" / "peers"
_OPERATIONS = ["all_reduce", "all_reduce_rms_norm", "minimax_allreduce_rms_qk"]


def main() -> int:
    """Run the bench; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch-nccl", action="store_true", help="measure torch's NCCL")
    arguments, others = parser.parse_known_args()
    packed = arguments.folder / "libnccl.so.2.xz"
    with tempfile.TemporaryDirectory() as scratch:
        environment = dict(os.environ)
        if packed.exists() and not arguments.torch_nccl:
            library = Path(scratch, "libnccl.so.2")
            with lzma.open(packed) as source, library.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            environment["LD_PRELOAD"] = str(library)
        return subprocess.run(command(arguments.folder, others), env=environment).returncode


def command(folder: Path, others: list[str]) -> list[str]:
    """Return the bench's command line: the collectives, unless `others` say otherwise."""
    line = [sys.executable, "-m", "lamport_rs", "bench", "--peers", str(folder), "--record", str(_RESULTS)]
    return [*line, "--operations", *_OPERATIONS, *others]


if __name__ == "__main__":
    sys.exit(main())
