#!/bin/sh
# Says what is missing to build and test the package, and how to get it.
set -u
python=$1
missing=0

need() {
    echo "missing: $1" >&2
    missing=1
}

rust=1.91
if ! command -v cargo >/dev/null; then
    need "cargo (Rust $rust or later): https://rustup.rs"
elif found=$(rustc --version | cut -d' ' -f2) && [ "$(printf '%s\n' "$rust" "$found" | sort -V | head -n 1)" != "$rust" ]; then
    need "Rust $rust or later: this is $found (rustup update)"
fi
command -v cc >/dev/null || need "cc, which Rust links with: install gcc or clang (Debian: apt-get install gcc libc6-dev)"
command -v "${CXX:-c++}" >/dev/null ||
    need "${CXX:-c++}, with which the tests run the kernels without a GPU: install g++ or name another compiler in CXX"
if ! command -v "$python" >/dev/null; then
    need "$python (3.10 or later); another one can be named: make PYTHON=/path/to/python3"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    need "Python 3.10 or later: $python is $("$python" --version); name another one: make PYTHON=/path/to/python3"
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    need "Python's venv module (Debian: apt-get install python3-venv)"
elif ! "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))'; then
    # torch.compile builds small extensions in the tests; the package itself needs no headers.
    need "Python's headers (Debian: apt-get install python3-dev)"
fi
[ "$(uname -s)" = Linux ] || need "Linux: the shared memory and the CUDA handles are Linux's"
exit $missing
