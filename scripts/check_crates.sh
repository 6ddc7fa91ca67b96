#!/usr/bin/env bash
# Checks the crates as they would be published: that each builds from its package alone, and that a program of another
# workspace builds with them, with the kernels compiled out of the package. Needs NVRTC and ptxas, as any build with CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
# The packages' kernels, and not those that other builds have compiled.
unset LAMPORT_RS_KERNEL_CACHE

crates="lamport-rs-protocol lamport-rs-kernels lamport-rs-core lamport-rs"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
cargo publish --workspace --dry-run "$@"

# The dry run leaves no packages.
cargo package --workspace --no-verify "$@"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
for crate in $crates; do
  tar -xzf "target/package/$crate-$version.crate" -C "$folder"
done
cp "$folder/lamport-rs-$version/examples/all_reduce.rs" "$folder/src/main.rs"
{
  printf '[package]\nname = "engine"\nedition = "2024"\n\n[features]\ncuda = []\n\n[workspace]\n\n'
  printf '[dependencies]\nlamport-rs = { version = "=%s", features = ["cuda"] }\n' "$version"
  printf 'cudarc = { version = "0.19", default-features = false, features = ["driver", "std"] }\n\n[patch.crates-io]\n'
  for crate in $crates; do
    printf '%s = { path = "%s-%s" }\n' "$crate" "$crate" "$version"
  done
} >"$folder/Cargo.toml"
export CARGO_TARGET_DIR="$PWD/target/engine"
cargo build --manifest-path "$folder/Cargo.toml" --features cuda
[ -z "$(find -L "$folder/lamport-rs-kernels-$version" -type l)" ] || { echo 'a package has links' >&2; exit 1; }
"$CARGO_TARGET_DIR/debug/engine" --ranks 2
echo "a program outside of the workspace builds with the packages of $crates $version, and runs"
