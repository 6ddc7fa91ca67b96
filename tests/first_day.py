"""The shell blocks of the pages, run as somebody who has just come runs them: in a new virtual environment.

It sees the torch that the tests run with, and no lamport_rs but the wheel: no network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import lamport_rs
from documents import ROOT, Block, blocks
from lamport_rs.command_line.launch import NO_MULTICAST
from torchrun import run_to_its_end

SECONDS = 280.0
"""Most seconds that the lines of a block may take."""
TOOLS = ("nvidia-smi",)
"""Programs that may be in a folder of their own."""
KEPT = ("LD_LIBRARY_PATH", "TMPDIR", "NVSHMEM_DISABLE_NVLS", *NO_MULTICAST)
"""Variables of the tests that the lines have, too."""
FUNCTIONS = """
git() { [ "$1" = clone ] && cp -r "$SOURCES" "$(basename "$2")"; }
pip() {
  [ "$*" = "install ." ] || return 1
  "$PYTHON" -m pip --python "$(command -v python)" install --quiet --no-index --no-deps "$WHEEL"
}
torchrun() { python -m torch.distributed.run "$@"; }
"""
"""What stands in for what takes a network or a compiler, and for torch's command, which the environment has not."""
MAKE = "it works in the checkout's own environment, and `.ci/run` runs its targets"
EMULATOR = "minutes to hours; `make test` runs the emulator with a seed"
BUILDS = "two wheels; tests/test_compare_builds.py runs the program"
ENGINE = "the engine, and GPUs"
NOT_RUN = {
    "make demo": MAKE,
    "make test": MAKE,
    "make test-all": MAKE,
    "make lint": MAKE,
    "make test-emulator": EMULATOR,
    "LAMPORT_RS_EMULATOR_SEEDS=50 cargo test -p lamport-rs-kernels --test emulator families::mixtures": EMULATOR,
    "LAMPORT_RS_EMULATOR_SEEDS=17..18 cargo test -p lamport-rs-kernels --test emulator": EMULATOR,
    "python benchmarks/compare_builds.py before.whl after.whl --starts 5 --within 1": BUILDS,
    "sglang serve --model-path ... --tp 2": ENGINE,
    "vllm serve ...": ENGINE,
    "LAMPORT_RS_VLLM=0 vllm serve ...": ENGINE,
}
"""Lines that no test runs, each with what it is or would take."""
NEEDS_GPUS = {
    "torchrun --standalone --nproc-per-node 2 benchmarks/transformers_step.py --backend lamport",
    "torchrun --standalone --nproc-per-node 2 benchmarks/transformers_step.py --backend nccl",
}
"""Lines that tests/gpu/test_cuda_first_day.py runs."""


def checked(printed: str) -> list[str]:
    """The operations that the demo says it has checked."""
    return sorted(re.findall(r"^  (\w+), .*: as the float32 reference, on every rank$", printed, re.MULTILINE))


def lines_of(block: Block) -> list[str]:
    """The block's commands, without comments; one that goes on behind a backslash is one."""
    lines = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in block.text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def shown_after(block: Block) -> list[str] | None:
    """The lines of the `text` block that stands right behind this one; None if none does."""
    place = block.line + block.text.count("\n") + len(["```", "", "```text"])
    return next((each.text.splitlines() for each in blocks("text") if each.name == f"{block.page}:{place}"), None)


@dataclass(frozen=True)
class Newcomer:
    """A folder of somebody's own, with a checkout and a new environment."""

    folder: Path
    environment: dict[str, str]

    @staticmethod
    def arrive(folder: Path, **environment: str) -> Newcomer:
        """Make the environment and the checkout: the files that git knows or would take, as they are now.

        The wheel is the one that `LAMPORT_RS_WHEEL` names, or else what `make build` has left.
        """
        named = os.environ.get("LAMPORT_RS_WHEEL")
        wheels = [Path(named)] if named else sorted((ROOT / "dist").glob(f"lamport_rs-{lamport_rs.__version__}-*.whl"))
        assert len(wheels) == 1, f"`make build` leaves one wheel of this version in dist, but there are {wheels}"
        home, sources = folder / "environment", folder / "sources"
        # By the tests' own pip: not every Python can make an environment that has one.
        venv.create(home, with_pip=False, symlinks=True)
        (packages,) = home.glob("lib/python*/site-packages")
        (packages / "torch_at_hand.pth").write_text(f"{packages_at_hand(folder / 'packages')}\n")
        files = subprocess.check_output(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, text=True)
        for name in filter(None, files.split("\0")):
            if (ROOT / name).is_file():
                (sources / name).parent.mkdir(parents=True, exist_ok=True)
                (sources / name).write_bytes((ROOT / name).read_bytes())
        tools = {str(Path(found).parent) for name in TOOLS if (found := shutil.which(name))}
        path = ":".join([f"{home / 'bin'}", "/usr/local/bin", "/usr/bin", "/bin", *sorted(tools)])
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        own = {"HOME": str(folder), "PATH": path, "SOURCES": str(sources), "WHEEL": str(wheels[0].resolve())}
        return Newcomer(folder, {**NO_MULTICAST, **kept, **own, "PYTHON": sys.executable, **environment})

    def run(self, commands: list[str], within: str = ".") -> str:
        """Run the commands in one shell, in a folder of the newcomer's; return what they print."""
        shell = ["bash", "-euo", "pipefail", "-c", FUNCTIONS + "\n".join(commands)]
        return run_to_its_end(shell, SECONDS, cwd=self.folder / within, env=self.environment)[0]

    def run_block(self, block: Block, within: str, left_out: set[str]) -> str:
        """Run a block's lines but those that are left out; see that they print what the page shows, if it does."""
        printed = self.run([line for line in lines_of(block) if line not in left_out], within)
        shown = shown_after(block)
        assert shown is None or sorted(printed.splitlines()) == sorted(shown), printed
        return printed


def packages_at_hand(folder: Path) -> Path:
    """Fill the folder with links to the packages that the tests see, but for lamport_rs; return it."""
    folder.mkdir()
    for place in (Path(each) for each in sys.path if each.endswith(("site-packages", "dist-packages"))):
        for package in place.iterdir() if place.is_dir() else ():
            is_own = package.name.startswith(("lamport_rs", "pip", "__pycache__")) or package.suffix == ".pth"
            if not is_own and not (folder / package.name).exists():
                (folder / package.name).symlink_to(package)
    return folder
