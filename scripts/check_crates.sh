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
for crate in $crates; do
  tar -xzf "target/package/$crate-$version.crate" -C "$folder"
done

# A program's manifest. $1: its name, $2 and $3: what it asks lamport-rs and cudarc for.
manifest() {
  printf '[package]\nname = "%s"\nedition = "2024"\n\n[features]\ncuda = []\n\n[workspace]\n\n' "$1"
  printf '[dependencies]\nlamport-rs = { version = "=%s", %s }\n' "$version" "$2"
  printf 'cudarc = { version = "0.19", default-features = false, features = [%s] }\n\n[patch.crates-io]\n' "$3"
  for crate in $crates; do
    printf '%s = { path = "%s/%s-%s" }\n' "$crate" "$folder" "$crate" "$version"
  done
}

export CARGO_TARGET_DIR="$PWD/target/engine"
mkdir -p "$folder/engine/src" "$folder/linked/src"
cp "$folder/lamport-rs-$version/examples/all_reduce.rs" "$folder/engine/src/main.rs"
manifest engine 'features = ["cuda"]' '"driver", "std"' >"$folder/engine/Cargo.toml"
cargo build --manifest-path "$folder/engine/Cargo.toml" --features cuda
"$CARGO_TARGET_DIR/debug/engine" --ranks 2

# Others have cudarc link to the driver, and bindings of another version. They are checked only: to link takes the driver.
echo 'fn main() { println!("{:?}", lamport_rs::cuda::device_count()) }' >"$folder/linked/src/main.rs"
check_linked() {
  manifest linked "$1" "\"driver\", \"std\", \"dynamic-linking\"$2" >"$folder/linked/Cargo.toml"
  cargo check --manifest-path "$folder/linked/Cargo.toml"
}
check_linked 'features = ["cuda"]' ''
check_linked 'default-features = false, features = ["cuda"]' ', "cuda-13000"'

[ -z "$(find -L "$folder/lamport-rs-kernels-$version" -type l)" ] || { echo 'a package has links' >&2; exit 1; }
echo "a program outside of the workspace builds with the packages of $crates $version, and runs"
