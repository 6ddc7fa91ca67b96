#!/usr/bin/env bash
# Runs the host backend, with ranks as threads, under ThreadSanitizer.
#
# The sanitizer's runtime comes with every Rust toolchain, but its compiler flag is not yet stable: RUSTC_BOOTSTRAP
# allows it on a stable compiler. The standard library is not instrumented: the detector does not see its fences, nor how
# a lock that others wait for is handed on. What it therefore misreads is suppressed below, by name: in the test harness
# the channel of results and the `Arc` that hands a test to its thread, the data of scopes of threads, and what
# `own_words` does, all of it under one lock.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/race_detector"
suppressions=$(mktemp)
trap 'rm -f "$suppressions"' EXIT
printf 'race:%s\n' test::event::CompletedTest std::sync::mpmc 'Mutex<core::option::Option<test::run_test' \
  std::thread::scoped::ScopeData lamport_rs_core::lifecycle::life::own_words >"$suppressions"
export TSAN_OPTIONS="suppressions=$suppressions halt_on_error=0"

host_backend=(cargo test --quiet -p lamport-rs-core --features portable --target "$target" --test host_backend
              --test host_faults --test lifecycle --)

echo "race detector: does it report a deliberate race?"
if "${host_backend[@]}" --ignored deliberate_race >/dev/null 2>&1; then
    echo "race detector: the deliberate race was not reported, so this check proves nothing" >&2
    exit 1
fi
echo "race detector: the host backend"
# The detector does not see how the library's lock is passed on where threads wait for it, as they do in this test.
"${host_backend[@]}" --skip a_check_beside_a_reset
