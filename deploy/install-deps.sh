#!/usr/bin/env bash
# Installs everything that building Holdfast needs from the system, and nothing twice.
#
#   deploy/install-deps.sh             what the build needs
#   deploy/install-deps.sh --test      also what `make lint` and `make test` need, Python packages and an S3 server
#                                      included
#   deploy/install-deps.sh --compose   also a Docker engine, compose, and what else `make try-compose` needs
#   deploy/install-deps.sh --peers     also what `make bench` compares with: etcd and PostgreSQL; their services are not
#                                      started, and not enabled
#   deploy/install-deps.sh --check     install nothing; exit 1 and say what is missing (may stand with the others)
#
# Debian and Ubuntu only; elsewhere it lists what to install. Rust itself comes from rustup and is only checked.
set -euo pipefail

rust_min=1.95
# Where the Makefile keeps buf too; the tests look here.
venv=$HOME/.cache/holdfast/venv
# Packages of Python that tests need, each pinned as name==version.
python_packages=$(dirname "${BASH_SOURCE[0]}")/../crates/holdfast/tests/python_client/requirements.txt
# The S3 server that tests ship to has an environment of its own: it brings many packages along.
s3_venv=$HOME/.cache/holdfast/ministack
s3_packages=$(dirname "${BASH_SOURCE[0]}")/../jepsen-tests/ministack-requirements.txt
# One whose locks can be shortened, for what must find that out.
moto_venv=$HOME/.cache/holdfast/moto
moto_packages=$(dirname "${BASH_SOURCE[0]}")/../jepsen-tests/moto-requirements.txt

with_test=
with_compose=
with_peers=
check_only=
for arg in "$@"; do
    case "$arg" in
        --test) with_test=1 ;;
        --compose) with_compose=1 ;;
        --peers) with_peers=1 ;;
        --check) check_only=1 ;;
        -h | --help)
            sed -n '2,12s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *)
            echo "install-deps: unknown argument '$arg' (known: --test, --compose, --peers, --check, --help)" >&2
            exit 2
            ;;
    esac
done

say() { echo "install-deps: $*"; }
complain() { echo "install-deps: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# bindgen loads libclang at build time to read RocksDB's header, and needs the compiler's own headers beside it.
has_libclang() {
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    { PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep 'libclang[-0-9.]*\.so' >/dev/null; } ||
        compgen -G '/usr/lib*/llvm*/lib/libclang*.so*' >/dev/null || return 1
    compgen -G '/usr/lib*/llvm*/lib/clang/*/include/stddef.h' >/dev/null ||
        compgen -G '/usr/lib*/clang/*/include/stddef.h' >/dev/null
}

missing=()
# The C and C++ inside RocksDB, zstd, lz4 and jemalloc.
has c++ && has cc || missing+=(g++)
has make || missing+=(make)
has_libclang || missing+=(libclang-dev)
# A clean build of RocksDB takes minutes; with ccache only the first one does.
has ccache || missing+=(ccache)
# cargo checks the certificate of the package registry.
[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] || missing+=(ca-certificates)
if [ -n "$with_test" ]; then
    # Tests slow down and fail single system calls of a node.
    has strace || missing+=(strace)
    # promtool, for the alert rules.
    has promtool || missing+=(prometheus)
    # `make lint` keeps buf in a virtual environment, and a test its client in Python.
    python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || missing+=(python3 python3-venv)
fi
if [ -n "$with_compose" ]; then
    # The client alone may come from elsewhere; the engine is what is needed.
    PATH="$PATH:/sbin:/usr/sbin" has dockerd && has docker || missing+=(docker.io)
    docker compose version >/dev/null 2>&1 || has docker-compose || missing+=(docker-compose)
    # Networks of containers, and what the trial asks them.
    PATH="$PATH:/sbin:/usr/sbin" has iptables || missing+=(iptables)
    PATH="$PATH:/sbin:/usr/sbin" has ip || missing+=(iproute2)
    has curl || missing+=(curl)
fi

# One by one: a bench goes on without a peer that this system does not have.
peers=()
if [ -n "$with_peers" ]; then
    has etcd || peers+=(etcd-server)
    [ -x /usr/lib/postgresql/15/bin/postgres ] || has postgres || peers+=(postgresql-15)
    # Counts their syncs.
    has perf || peers+=(linux-perf)
fi

check_rust() {
    if ! has cargo; then
        complain "no cargo found. Install Rust $rust_min or newer with rustup (https://rustup.rs), open a new shell, and run this again."
        return 1
    fi
    local version
    version=$(cargo --version | awk '{print $2}')
    if [ "$(printf '%s\n' "$rust_min" "$version" | sort -V | head -n 1)" != "$rust_min" ]; then
        complain "cargo is $version; Holdfast needs Rust $rust_min or newer: run 'rustup update stable'."
        return 1
    fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

# apt-get is quiet unless it fails; then its whole output is shown.
apt_quiet() {
    local log status=0
    log=$(mktemp)
    as_root apt-get "$@" >"$log" 2>&1 </dev/null || status=$?
    [ "$status" = 0 ] || cat "$log" >&2
    rm -f "$log"
    return "$status"
}

knows_all() {
    local package
    for package in "$@"; do
        apt-cache policy "$package" 2>/dev/null | grep 'Candidate: [^(]' >/dev/null || return 1
    done
}

# Packages to install.
install_missing() {
    if ! has apt-get; then
        complain "this system has no apt-get. Install these yourself, by the names your system uses: $*"
        complain "(Fedora: gcc-c++ make clang-devel ccache strace prometheus python3; Arch: gcc make clang ccache strace prometheus python; then run this again)"
        return 1
    fi
    if [ "$(id -u)" != 0 ] && ! has sudo; then
        complain "not root and no sudo. As root: apt-get install $*"
        return 1
    fi
    local updated=
    if ! knows_all "$@"; then
        say "updating the package lists"
        apt_quiet update
        updated=1
    fi
    say "installing $*"
    if ! apt_quiet install -y --no-install-recommends "$@"; then
        [ -z "$updated" ] || return 1
        say "that failed; updating the package lists and trying once more"
        apt_quiet update
        apt_quiet install -y --no-install-recommends "$@" || return 1
    fi
    say "installed $*"
}

# Debian's packages of servers start them at once, and at every boot. What is installed for a bench must do neither.
install_peers() {
    local policy=/usr/sbin/policy-rc.d saved package failed=0
    saved=$(mktemp)
    [ ! -e "$policy" ] || as_root cp -p "$policy" "$saved"
    # shellcheck disable=SC2329
    restore_policy() {
        if [ -s "$saved" ]; then as_root cp -p "$saved" "$policy"; else as_root rm -f "$policy"; fi
        as_root rm -f "$saved"
    }
    trap restore_policy EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    for package in "$@"; do
        if install_missing "$package"; then
            if has systemctl; then
                as_root systemctl disable --quiet etcd.service postgresql.service 2>/dev/null || true
            fi
        else
            complain "$package could not be installed: nothing is compared with it"
            failed=1
        fi
    done
    restore_policy
    trap - EXIT
    return "$failed"
}

# Exactly the pinned packages of a file are in an environment, and a Python that finds them.
has_python_packages() {
    [ -x "$1/bin/python" ] && "$1/bin/python" - "$2" >/dev/null 2>&1 <<'EOF'
import sys
from importlib.metadata import version

for line in open(sys.argv[1], encoding="utf-8"):
    if "==" in line:
        name, wanted = line.strip().split("==")
        assert version(name) == wanted
EOF
}

# Environment, file of packages, and what does not work without them.
install_python_packages() {
    say "installing the Python packages of the tests into $1"
    local log status=0 clear=
    log=$(mktemp)
    # Into an environment that is there, so that buf stays; one whose Python is gone is made anew (`make lint` gets buf).
    "$1/bin/python" -c '' 2>/dev/null || clear=--clear
    { python3 -m venv $clear "$1" &&
        "$1/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: -r "$2"; } \
        >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" != 0 ]; then
        cat "$log" >&2
        complain "the Python packages of $2 could not be installed: $3. Run this again with a network."
    fi
    rm -f "$log"
    return "$status"
}

status=0
if [ ${#missing[@]} -gt 0 ]; then
    if [ -n "$check_only" ]; then
        complain "missing: ${missing[*]}. Run deploy/install-deps.sh${with_test:+ --test}${with_compose:+ --compose}"
        status=1
    else
        install_missing "${missing[@]}" || status=1
    fi
fi
if [ ${#peers[@]} -gt 0 ]; then
    if [ -n "$check_only" ]; then
        complain "missing: ${peers[*]}. Run deploy/install-deps.sh --peers"
        status=1
    else
        install_peers "${peers[@]}" || status=1
    fi
fi
if [ -n "$with_test" ] && ! has_python_packages "$venv" "$python_packages"; then
    if [ -n "$check_only" ]; then
        complain "missing: Python packages of the tests in $venv. Run deploy/install-deps.sh --test"
        status=1
    else
        install_python_packages "$venv" "$python_packages" "the tests in python_client will fail" || status=1
    fi
fi
# An S3 server of the tests: environment, file of packages, and what does not work without it.
s3_server() {
    has_python_packages "$1" "$2" && return 0
    if [ -n "$check_only" ]; then
        complain "missing: an S3 server of the tests in $1: $3. Run deploy/install-deps.sh --test"
    else
        # No reason to run no tests at all, but where a skipped one must not look like one that passed.
        install_python_packages "$1" "$2" "$3" || [ -z "${CI:-}" ] || status=1
    fi
}
if [ -n "$with_test" ]; then
    s3_server "$s3_venv" "$s3_packages" "tests against a real S3 server are SKIPPED"
    s3_server "$moto_venv" "$moto_packages" "the test against a server whose locks can be shortened is SKIPPED"
fi
check_rust || status=1
exit "$status"
