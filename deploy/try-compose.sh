#!/usr/bin/env bash
# Tries deploy/compose with a real binary: builds the image, follows deploy/compose/README.md by running the commands
# that stand in it, kills the leader, and sees the cluster heal. The Docker engine is one of its own, in namespaces of
# its own beside any that runs: nothing is installed here, and it has no way to the network.
#
#   deploy/try-compose.sh target/release/holdfast
#
# Needs root, Debian's docker.io and docker-compose (deploy/install-deps.sh --compose), and a kernel that lets root make
# namespaces and bridges; else it says "SKIPPED: ..." and exits 0 (under CI or with REQUIRE_COMPOSE=1: 1). Exit 1:
# something does not hold. Takes about two minutes.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

say() { echo "try-compose: $*"; }

skip() {
    say "SKIPPED: $*"
    [ -z "${CI:-}${REQUIRE_COMPOSE:-}" ] || exit 1
    exit 0
}

# ---------------------------------------------------------------------------------------------------------------------
# Inside: PID 1 of its namespaces, with a network of its own
# ---------------------------------------------------------------------------------------------------------------------

# Says that the engine does not come up: a matter of this machine, not of what is tried.
no_engine=77

# shellcheck source=deploy/trial.sh
. "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/trial.sh"

bad() {
    trap - ERR
    echo "  FAILED: $*"
    compose ps 2>&1 | sed 's/^/    /' || true
    compose logs --tail 15 --no-color 2>&1 | sed 's/^/    /' || true
    exit 1
}

# The n-th ```sh block of the README, by the compose that is here. The binary is built already.
block() {
    awk -v want="$1" '/^```sh$/ { n++; on = 1; next } /^```$/ { on = 0 } on && n == want' deploy/compose/README.md |
        grep -vE '^make build' | sed "s/docker-compose /${compose_command[*]} /g"
}

compose() { (cd "$tree/deploy/compose" && "${compose_command[@]}" "$@"); }
holdfast() { "$tree/target/release/holdfast" "$@"; }
in_node() { compose exec -T "node$1" holdfast "${@:2}"; }
# Property of a container, e.g. `of node1 .State.Pid`.
of() { docker inspect -f "{{$2}}" "$(compose ps -q "$1")"; }
healthy() { for node in node1 node2 node3; do [ "$(of $node .State.Health.Status)" = healthy ] || return 1; done; }
endpoints=127.0.0.1:7470,127.0.0.1:7480,127.0.0.1:7490
put() { echo "payload $1" | holdfast record put --endpoint $endpoints --user ann --collection x-try --id "$1" --file -; }
reads() { [ "$(holdfast record get --endpoint $endpoints --user ann --collection x-try --id "$1")" = "payload $1" ]; }
state_of() { awk -v key="$2:" '$1 == key { print $2 }' "/proc/$(of "$1" .State.Pid)/status"; }
answer() { curl -fsS --max-time 5 "http://127.0.0.1:$1/readyz"; }

start_engine() {
    local work=$1 path
    ip link set lo up
    # What engines leave there stays in here: sockets and locks, a key, a folder for plugins.
    mount -t tmpfs tmpfs "$work/over"
    mount -t tmpfs tmpfs /run
    for path in etc opt; do
        mkdir -p "$work/over/$path" "$work/over/work-$path"
        mount -t overlay overlay -o "lowerdir=/$path,upperdir=$work/over/$path,workdir=$work/over/work-$path" "/$path" ||
            exit $no_engine
    done
    # Not a file of the machine's own engine, and no keys that anyone keeps.
    echo '{}' >"$work/daemon.json"
    dockerd --config-file "$work/daemon.json" --data-root "$work/data" --exec-root "$work/exec" \
        --host "unix://$work/docker.sock" --pidfile "$work/dockerd.pid" --cgroup-parent "/$group" \
        --exec-opt native.cgroupdriver=cgroupfs >"$work/dockerd.log" 2>&1 &
    engine=$!
    for _ in {1..300}; do
        docker version >/dev/null 2>&1 && return
        kill -0 $engine 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$work/dockerd.log" | sed 's/^/    /'
    exit $no_engine
}

inside() {
    local work=$1 node leader before out name
    tree=$work/tree
    cd "$tree"
    set -E
    trap 'bad "line $LINENO: $BASH_COMMAND"' ERR
    start_engine "$work"
    if docker compose version >/dev/null 2>&1; then compose_command=(docker compose); else compose_command=(docker-compose); fi
    say "engine $(docker version -f '{{.Server.Version}}'), $("${compose_command[@]}" version | head -n 1)"

    echo "Starting"
    expect "first block of the README: image, three nodes, cluster init" bash -euxc "$(block 1)"
    [ "$(docker run --rm --network none holdfast --version)" = "$(holdfast --version)" ] || bad "the image is another version"
    out=$(docker export "$(compose ps -q node1)" | tar t | grep -cE '(^|/)(sh|bash|busybox|ld|cc|apt|dpkg)$' || true)
    [ "$out" = 0 ] || bad "there is a shell in the image"
    good "the image runs the same version, and has no shell"
    await "all three containers are healthy" 60 healthy
    await "cluster health: nothing is wrong" 20 in_node 1 cluster health
    out=$(in_node 1 cluster health -o json)
    [ "$(grep -c '"check_id"' <<<"$out" || true)" = 0 ] || bad "health has something to say: $out"
    good "not even a warning: the labels differ as placement.keys asks for"
    expect "second block of the README: ps, status, health, backup now, backup verify" bash -euxc "cd deploy/compose; $(block 2)"
    for name in array=san-01 array=san-02 array=san-03 site=north site=east site=west site=south power=a; do
        out=$(in_node 1 domain survive --lose $name 2>&1) || bad "lost with $name: $out"
    done
    good "domain survive: no acknowledged write goes with any array, site or power feed"

    echo "Rights"
    for node in node1 node2 node3; do
        { [ "$(state_of $node Uid)" = 7470 ] && [ "$(state_of $node CapEff)" = 0000000000000000 ] &&
            [ "$(state_of $node CapBnd)" = 0000000000000000 ] && [ "$(state_of $node NoNewPrivs)" = 1 ] &&
            [ "$(state_of $node Seccomp)" = 2 ]; } || bad "$node has other rights than it should: $(grep -E '^(Uid|Cap|NoNew|Seccomp)' "/proc/$(of $node .State.Pid)/status")"
        grep -E '^[^ ]+ [^ ]+ [^ ]+ / / ro[, ]' "/proc/$(of $node .State.Pid)/mountinfo" >/dev/null ||
            bad "the root of $node can be written"
        [ "$(docker port "$(compose ps -q $node)" | grep -vc '127\.0\.0\.1:')" = 0 ] || bad "$node is published beyond loopback"
    done
    good "account 7470, no capability, no new rights, system calls filtered, a read-only root, loopback only"

    echo "Healing"
    for node in {1..10}; do put "r$node" >/dev/null || bad "writing record r$node"; done
    expect "records are written by way of the published ports, and read" reads r10
    leader=node$(holdfast cluster status -o json | sed -n 's/^  "leader_id": \([0-9]*\).*/\1/p')
    before=$(of "$leader" .State.Pid)
    # As a crash would: not by the engine, which takes its own `kill` for a wish that the node stays down.
    kill -KILL "$before"
    expect "$leader, the leader, is killed; the other two take a write" put while-away
    restarted() { [ "$(of "$leader" .RestartCount)" = 1 ] && [ "$(of "$leader" .State.Pid)" != "$before" ]; }
    await "the engine starts it again" 20 restarted
    await "all three are ready" 30 eval 'answer 7473 && answer 7483 && answer 7493'
    await "all three containers are healthy" 60 healthy
    await "cluster health: nothing is wrong" 20 in_node 1 cluster health
    expect "the record written while it was away is read" reads while-away

    echo "Stopping"
    compose stop >/dev/null 2>&1
    for node in node1 node2 node3; do
        [ "$(docker inspect -f '{{.State.ExitCode}}' "$(compose ps -aq $node)")" = 0 ] || bad "$node did not end with 0"
    done
    good "docker-compose stop: each drained and left with exit 0"
    expect "docker-compose start" compose start
    await "all three containers are healthy" 60 healthy
    expect "all records are there" eval 'reads r1 && reads r10 && reads while-away'
    expect "docker-compose down" compose down
    expect "docker-compose up: the volumes were kept" compose up -d
    await "all three containers are healthy" 60 healthy
    expect "all records are there" eval 'reads r1 && reads r10 && reads while-away'
    expect "docker-compose down -v" compose down -v
    [ -z "$(docker ps -aq)$(docker volume ls -q)" ] || bad "left: $(docker ps -a; docker volume ls)"
    good "no container and no volume is left"
    kill "$engine"
    wait "$engine" || true
    echo "$trial things hold."
}

# ---------------------------------------------------------------------------------------------------------------------
# Outside: the machine that the trial runs in
# ---------------------------------------------------------------------------------------------------------------------

# The trees of control groups: one for each kind in version 1, one in version 2.
groups() { find /sys/fs/cgroup -maxdepth 2 -type d -name "$group" 2>/dev/null; }

clean_up() {
    local status=$? path
    trap - EXIT INT TERM HUP
    # PID 1 of the namespaces takes all processes in it along, and they their mounts, bridges and rules.
    if [ -n "${machine:-}" ]; then
        kill -KILL "$machine" 2>/dev/null || true
        wait "$machine" 2>/dev/null || true
    fi
    for _ in {1..50}; do
        for path in $(groups); do find "$path" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
        rm -rf --one-file-system "$work" 2>/dev/null || true
        [ -n "$(groups)" ] || [ -e "$work" ] || break
        sleep 0.1
    done
    for path in $(groups) "$work"; do [ ! -e "$path" ] || { say "left behind: $path"; status=1; }; done
    [ -n "$(groups)" ] || [ -e "$work" ] || say "nothing is left behind"
    exit "$status"
}

main() {
    local tool status=0
    [ "$(id -u)" = 0 ] || skip "this needs root"
    for tool in unshare ip curl docker dockerd; do
        command -v $tool >/dev/null || skip "no $tool found: deploy/install-deps.sh --compose"
    done
    docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null ||
        skip "no docker-compose found: deploy/install-deps.sh --compose"
    unshare --net --mount --pid --ipc --uts --fork true 2>/dev/null || skip "no namespaces can be made"
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/try-compose.XXXXXX")
    group=${work##*/}
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    say "$(sha256sum "$binary" | cut -c 1-12) $binary"
    mkdir -p "$work/tree/target/release" "$work/config" "$work/over"
    cp -a "$deploy" "$work/tree/deploy"
    cp "$binary" "$work/tree/target/release/holdfast"
    env -i HOME="$work" TMPDIR="$work" LANG=C.UTF-8 PATH="$PATH" DOCKER_HOST="unix://$work/docker.sock" \
        DOCKER_CONFIG="$work/config" group="$group" \
        setpriv --pdeathsig KILL unshare --net --mount --pid --ipc --uts --fork --kill-child=KILL --mount-proc \
        bash "$self" --inside "$work" &
    machine=$!
    wait $machine || status=$?
    machine=
    case "$status" in
        0) say "passed" ;;
        "$no_engine") skip "no Docker engine comes up in namespaces here" ;;
        *) say "FAILED"; exit 1 ;;
    esac
}

case "${1:-}" in
    --inside) inside "$2" ;;
    '' | -*)
        sed -n '2,10s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
    *)
        [ -x "$1" ] || { say "no such program: $1" >&2; exit 2; }
        self=$(realpath "$0")
        binary=$(realpath "$1")
        deploy=$(dirname "$self")
        main
        ;;
esac
