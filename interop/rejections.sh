#!/bin/sh
# Shows that Go and Node clients lose no rejection of a request with a body of up to 64 KiB.
# Needs cargo, Go and Node; fails if a rejection is lost or a program is missing.
set -eu
cd "$(dirname "$0")"
out=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$out"' EXIT

cargo build --quiet --manifest-path ../Cargo.toml --all-features --example interop_rejections
target=${CARGO_TARGET_DIR:-../target}
"$target/debug/examples/interop_rejections" >"$out/address" &
server=$!
tries=0
until [ -s "$out/address" ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 100 ]; then
        echo "the server did not start: it printed no address in 10 s" >&2
        exit 1
    fi
    sleep 0.1
done
url=$(cat "$out/address")

status=0
(cd go/rejections && GOFLAGS=-mod=mod go run . "$url") || status=1
node node/rejections.mjs "$url" || status=1
exit "$status"
