#!/bin/sh
# Checks that Go and Node clients receive every rejection of a request with a body of up to 64 KiB (E11).
#
# Prints one line per row, `ok|FAIL|SKIP <row> <what>`, and fails if a row fails. Go is required;
# Node is skipped if it is missing.
set -eu
cd "$(dirname "$0")"
out=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$out"' EXIT

# With the features of the default members, so that the build of `cargo test` is reused.
cargo build --quiet --manifest-path ../Cargo.toml --example interop_rejections
target=${CARGO_TARGET_DIR:-../target}
"$target/debug/examples/interop_rejections" >"$out/address" &
server=$!
tries=0
until [ -s "$out/address" ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 100 ]; then
        echo "FAIL e11-server it printed no address in 10 s"
        exit 1
    fi
    sleep 0.1
done
url=$(cat "$out/address")

status=0
if command -v go >/dev/null 2>&1; then
    (cd go/rejections && GOFLAGS=-mod=mod go run . "$url") || status=1
else
    echo "FAIL e11-go go is not installed; it is required"
    status=1
fi
if command -v node >/dev/null 2>&1; then
    node node/rejections.mjs "$url" || status=1
else
    echo "SKIP e11-node Node is not installed"
fi
exit "$status"
