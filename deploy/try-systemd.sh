#!/usr/bin/env bash
# Tries deploy/systemd/holdfast.service with a real binary under a real systemd, which is PID 1 in namespaces of its
# own: nothing is installed here, and it has no way to the network.
#
#   deploy/try-systemd.sh target/release/holdfast
#
# It follows deploy/README.md as written, by running the commands that stand in it. Needs root, systemd installed, and
# a kernel that lets root make namespaces, overlays and control groups; else it says "SKIPPED: ..." and exits 0 (under
# CI or with REQUIRE_SYSTEMD=1: 1). Exit 1: something does not hold. Takes about a minute.
set -euo pipefail

say() { echo "try-systemd: $*"; }

skip() {
    say "SKIPPED: $*"
    [ -z "${CI:-}${REQUIRE_SYSTEMD:-}" ] || exit 1
    exit 0
}

# ---------------------------------------------------------------------------------------------------------------------
# Inside: a machine that has just started, with the tree in /try
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=deploy/trial.sh
. "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/trial.sh"

bad() {
    echo "  FAILED: $*"
    systemctl --no-pager --lines=0 status 'holdfast*.service' 2>&1 | sed 's/^/    /' || true
    journalctl --no-pager -q -o cat -n 40 2>&1 | sed 's/^/    /' || true
    exit 1
}

# Property of a unit, e.g. `of holdfast MainPID`.
of() { systemctl show -P "$2" "$1.service"; }
is() { [ "$(of "$1" "$2")" = "$3" ]; }
said() { journalctl --sync && journalctl -q -o cat -u "$1" --since "@$since" | grep -e "$2" >/dev/null; }
now() { since=$(date +%s.%6N); }

# The n-th ```sh block of deploy/README.md, without what the trial does in its own way.
block() {
    awk -v want="$1" '/^```sh$/ { n++; on = 1; next } /^```$/ { on = 0 } on && n == want' deploy/README.md |
        grep -vE '^(make build|journalctl -u holdfast -f|curl )'
}

endpoints=127.0.0.1:7470,127.0.0.1:7570,127.0.0.1:7670
put() { echo "payload $1" | holdfast record put --endpoint $endpoints --user ann --collection x-try --id "$1" --file -; }
count() { holdfast record ls --endpoint $endpoints --user ann --collection x-try -o jsonl | grep -c '"id"'; }
has_records() { [ "$(count)" = "$1" ]; }
ready() { curl -fsS "http://127.0.0.1:$1/readyz?verbose"; }
all_ready() { ready 7473 && ready 7573 && ready 7673; }
state_of() { awk -v key="$2:" '$1 == key { print $2 }' "/proc/$(of "$1" MainPID)/status"; }

# Node 2 or 3 on the same machine: the same unit and file under another name, ports 100 and 200 higher.
another_node() {
    local n=$1 name=holdfast-$1 port=$((7370 + 100 * $1))
    sed -e "s,/var/lib/holdfast\$,/var/lib/$name," -e "s,/etc/holdfast/holdfast\.toml,/etc/holdfast/$name.toml," \
        -e "s,^StateDirectory=.*,StateDirectory=$name," -e "s,/etc/default/holdfast,/etc/default/$name," \
        /etc/systemd/system/holdfast.service >/etc/systemd/system/$name.service
    mkdir -p /etc/systemd/system/$name.service.d
    cp /etc/systemd/system/holdfast.service.d/offsite.conf /etc/systemd/system/$name.service.d/
    sed -e "s,^id = 1,id = $n," -e "s,\"/var/lib/holdfast\",\"/var/lib/$name\"," -e "s,rack = \"n1\",rack = \"n$n\"," \
        -e "s,0\.0\.1:747,0.0.1:${port%0}," /etc/holdfast/holdfast.toml >/etc/holdfast/$name.toml
}

# stays_down WHAT CODE: holdfast-3 is started and ends with CODE, and nobody starts it again.
stays_down() {
    local what=$1 code=$2
    systemctl reset-failed holdfast-3 2>/dev/null || true
    now
    systemctl start holdfast-3 || true
    for _ in {1..50}; do is holdfast-3 ActiveState failed && break || sleep 0.2; done
    sleep 3 # Longer than RestartSec.
    { is holdfast-3 ActiveState failed && is holdfast-3 ExecMainStatus "$code" && is holdfast-3 NRestarts 0; } ||
        bad "$what: exit $code, not started again (found: $(of holdfast-3 ActiveState), exit" \
            "$(of holdfast-3 ExecMainStatus), $(of holdfast-3 NRestarts) restarts)"
    said holdfast-3 '^holdfast: ' || bad "$what: the journal does not say why"
    good "$what: exit $code, not started again: $(journalctl -q -o cat -u holdfast-3 --since "@$since" |
        grep -m 1 '^holdfast: ' | cut -c 11-110)"
}

# serves NODE: it is up and votes again.
serves() {
    systemctl reset-failed "$1" 2>/dev/null || true
    systemctl start "$1"
    await "$1 serves again" 30 all_ready
}

inside() {
    cd /try
    local pid began took left leader token call other unit out n path signal
    set -E
    trap 'bad "line $LINENO: $BASH_COMMAND"' ERR

    echo "Installing"
    expect "first block of the README: files and account" bash -euxc "$(block 1)"
    expect "second block: the offsite folder" bash -euxc "$(block 2)"
    out=$(systemd-analyze verify /etc/systemd/system/holdfast.service 2>&1) || bad "systemd-analyze verify: $out"
    [ -z "$(grep holdfast <<<"$out")" ] || bad "systemd-analyze verify: $out"
    good "systemd-analyze verify has nothing to say about the unit"
    expect "third block: daemon-reload, enable --now, with the example file unchanged" bash -euxc "$(block 3)"
    await "the unit is active" 5 is holdfast ActiveState active
    await "/livez answers" 10 curl -fsS http://127.0.0.1:7473/livez
    ! ready 7473 >/dev/null 2>&1 || bad "ready before the cluster is founded"
    good "and /readyz says no until the cluster is founded: active means started, not ready"
    for n in 2 3; do another_node $n; done
    # Node 2 keeps its floor elsewhere, node 3 on the variable of its environment file.
    install -d -o holdfast -g holdfast -m 700 /srv/floor-2 /srv/floor-3
    printf '\n[raft]\nfloor_dir = "/srv/floor-2"\n' >>/etc/holdfast/holdfast-2.toml
    echo HOLDFAST_RAFT_FLOOR_DIR=/srv/floor-3 >/etc/default/holdfast-3
    for n in 2 3; do
        printf '[Service]\nReadWritePaths=/srv/floor-%s\n' $n >/etc/systemd/system/holdfast-$n.service.d/floor.conf
    done
    systemctl daemon-reload
    expect "two more nodes, by the same unit under other names" systemctl start holdfast-2 holdfast-3
    await "all three answer" 10 eval 'for p in 7473 7573 7673; do curl -fsS http://127.0.0.1:$p/livez || exit 1; done'
    expect "cluster init" holdfast cluster init --name try --nodes 127.0.0.1:7472,127.0.0.1:7572,127.0.0.1:7672
    await "all three are ready" 20 all_ready

    echo "Writing"
    for n in {1..20}; do put "r$n" >/dev/null || bad "writing record $n"; done
    expect "20 records are written and read" has_records 20
    expect "backup now" holdfast backup now --wait 60
    expect "backup verify of the offsite folder" holdfast backup verify --from file:///var/lib/holdfast-offsite
    expect "fourth block: the nightly snapshot, installed, enabled, and taken once" bash -euxc "$(block 4)"
    is holdfast-backup Result success || bad "holdfast-backup: $(of holdfast-backup Result)"
    is holdfast-backup User holdfast || bad "holdfast-backup is run as $(of holdfast-backup User)"
    systemctl is-active --quiet holdfast-backup.timer || bad "the timer does not wait"
    out=$(systemd-analyze verify /etc/systemd/system/holdfast-backup.{service,timer} 2>&1) || bad "systemd-analyze verify: $out"
    [ -z "$(grep holdfast <<<"$out")" ] || bad "systemd-analyze verify: $out"
    [ "$(holdfast backup ls --from file:///var/lib/holdfast-offsite | grep -cE '^  [0-9]+ ')" = 2 ] ||
        bad "$(holdfast backup ls --from file:///var/lib/holdfast-offsite)"
    good "the archive lists both snapshots, and systemd-analyze verify has nothing to say"
    echo ENDPOINT=127.0.0.1:7972 >/etc/default/holdfast-backup
    ! systemctl start holdfast-backup 2>/dev/null || bad "a snapshot that nobody took is called success"
    is holdfast-backup ExecMainStatus 5 || bad "exit $(of holdfast-backup ExecMainStatus)"
    rm /etc/default/holdfast-backup
    systemctl reset-failed holdfast-backup
    good "a snapshot that is not taken is a failed unit (exit 5)"
    ls /var/lib/holdfast/raft/*.log >/dev/null && [ -d /var/lib/holdfast/state ] || bad "data in /var/lib/holdfast"
    [ -s /var/lib/holdfast/floor-0 ] && [ -s /srv/floor-2/floor-0 ] && [ -s /srv/floor-3/floor-0 ] ||
        bad "floor files: $(ls /var/lib/holdfast /srv/floor-2 /srv/floor-3)"
    good "log, state and floor are on disk; two floors are outside the data directory (file, HOLDFAST_* variable)"
    [ "$(stat -c '%U %a' /var/lib/holdfast)" = "holdfast 700" ] || bad "/var/lib/holdfast: $(ls -ld /var/lib/holdfast)"
    [ -z "$(find /var/lib/holdfast /var/lib/holdfast-offsite ! -user holdfast -o -perm /077 ! -type l)" ] ||
        bad "others may read: $(find /var/lib/holdfast /var/lib/holdfast-offsite ! -user holdfast -o -perm /077 ! -type l)"
    good "all of it belongs to holdfast, and nobody else may read it"

    echo "Rights"
    pid=$(of holdfast MainPID)
    [ "$(stat -c %U "/proc/$pid")" = holdfast ] || bad "not run as holdfast"
    [ "$(state_of holdfast CapBnd)" = 0000000000000000 ] && [ "$(state_of holdfast CapEff)" = 0000000000000000 ] &&
        [ "$(state_of holdfast NoNewPrivs)" = 1 ] && [ "$(state_of holdfast Seccomp)" = 2 ] ||
        bad "$(grep -E 'Cap|NoNew|Seccomp' "/proc/$pid/status")"
    good "account holdfast, no capability, no new rights, system calls filtered"
    grep ' / / ro[, ]' "/proc/$pid/mountinfo" >/dev/null || bad "the root is not read-only for the node"
    for path in /etc /usr/local/bin /var/lib /srv /var/log; do
        ! nsenter -m -t "$pid" touch "$path/x" 2>/dev/null || bad "$path can be written from the node"
    done
    for path in /var/lib/holdfast /var/lib/holdfast-offsite /tmp; do
        nsenter -m -t "$pid" sh -c "touch $path/x && rm $path/x" || bad "$path cannot be written from the node"
    done
    good "it can write its data, the offsite folder and a /tmp of its own, and not even root in its place anything else"
    ! nsenter -m -t "$pid" ls -A /home | grep . >/dev/null || bad "/home is seen"
    ! nsenter -m -t "$pid" test -e /dev/kmsg -o -e /dev/mem -o -e /dev/sda -o -e /dev/vda || bad "devices are seen"
    good "no homes, no devices"
    journalctl --sync
    left=$(journalctl -q -o cat -u 'holdfast*' | grep -iE 'permission denied|not permitted|read-only file|EPERM|EROFS' || true)
    left+=$(grep -ihE 'permission denied|not permitted|read-only file' /var/lib/holdfast*/state/*/*/LOG || true)
    [ -z "$left" ] || bad "something was refused: $left"
    good "nothing that the nodes or RocksDB tried was refused"
    for unit in holdfast holdfast-backup; do
        # In tenths; 100 is the most exposed, and what a network service needs keeps it above zero.
        systemd-analyze security --no-pager --threshold=15 $unit.service >/dev/null ||
            bad "$unit is more exposed than 1.5: $(systemd-analyze security --no-pager $unit.service | grep -v '^.*✓')"
        out=$(systemd-analyze security --no-pager $unit.service | tail -n 1 | grep -o '[0-9][0-9.]* [A-Z]*' | head -n 1)
        good "systemd-analyze security of $unit: $out, at most 1.5"
    done

    echo "Stopping"
    leader=$(holdfast cluster status -o json | sed -n 's/^  "leader_id": \([0-9]*\).*/\1/p')
    [ -n "$leader" ] || bad "no leader in cluster status"
    unit=holdfast
    [ "$leader" = 1 ] || unit=holdfast-$leader
    # A call that would wait for a minute is under way.
    token=$(holdfast record changes --user ann --endpoint $endpoints -o jsonl |
        sed -n 's/.*"next_sync_token": *"\([^"]*\)".*/\1/p')
    holdfast record changes --endpoint "127.0.0.1:$((7370 + 100 * leader))" --user ann --token "$token" \
        --wait-ms 60000 --deadline-ms 90000 >/dev/null 2>&1 &
    call=$!
    sleep 0.5
    kill -0 $call 2>/dev/null || bad "the call that should wait did not"
    now
    began=$(date +%s%3N)
    expect "systemctl stop of the leader ($unit) with a call under way" systemctl stop "$unit"
    took=$(($(date +%s%3N) - began))
    is "$unit" Result success && is "$unit" ExecMainCode 1 && is "$unit" ExecMainStatus 0 ||
        bad "stopped with $(of "$unit" Result), $(of "$unit" ExecMainCode) $(of "$unit" ExecMainStatus)"
    [ "$took" -lt 30000 ] || bad "it took $took ms"
    said "$unit" node.draining && said "$unit" node.stopped && ! said "$unit" leader.kept || bad "no drain in the journal"
    good "it drained and left with exit 0 after $took ms; leadership was handed over"
    kill $call 2>/dev/null || true
    wait $call 2>/dev/null || true
    expect "the other two take a write" put while-away
    serves "$unit"
    systemctl stop holdfast holdfast-2 holdfast-3
    for unit in holdfast holdfast-2 holdfast-3; do is $unit Result success || bad "$unit stopped with $(of $unit Result)"; done
    good "all three are stopped at once"
    expect "and started again" systemctl start holdfast holdfast-2 holdfast-3
    await "all three are ready" 30 all_ready
    expect "all 21 records are there" has_records 21

    echo "Dying"
    for signal in KILL ABRT; do
        pid=$(of holdfast MainPID)
        began=$(of holdfast NRestarts)
        now
        systemctl kill --kill-whom=main --signal=$signal holdfast
        await "SIG$signal: started again by systemd" 15 eval \
            "is holdfast ActiveState active && [ \$(of holdfast NRestarts) = $((began + 1)) ] && [ \$(of holdfast MainPID) != $pid ]"
        await "ready again" 30 all_ready
    done
    expect "all 21 records are there" has_records 21

    echo "Staying down"
    systemctl stop holdfast-3
    local variables
    variables=$(cat /etc/default/holdfast-3)
    (echo "$variables"; echo HOLDFAST_RAFT_HEARTBEAT=1) >/etc/default/holdfast-3
    stays_down "an unknown variable" 2
    (echo "$variables"; echo HOLDFAST_NODE_ID=7) >/etc/default/holdfast-3
    stays_down "the directory of another node" 3
    echo "$variables" >/etc/default/holdfast-3
    setpriv --reuid=holdfast --regid=holdfast --clear-groups holdfast serve --no-config --node-id 3 \
        --data-dir /var/lib/holdfast-3 --set raft.floor_dir=/srv/floor-3 --set listen.client=127.0.0.1:7770 \
        --set listen.peer=127.0.0.1:7771 --set listen.admin=127.0.0.1:7772 --set listen.http=127.0.0.1:7773 \
        2>/dev/null >&2 &
    other=$!
    for _ in {1..50}; do curl -fs http://127.0.0.1:7773/livez >/dev/null && break || sleep 0.2; done
    stays_down "a directory in use" 8
    kill "$other"
    wait "$other" || true
    cp -p /var/lib/holdfast-3/IDENTITY /srv/identity
    head -c 8 /srv/identity >/var/lib/holdfast-3/IDENTITY
    stays_down "a damaged file" 9
    cp -p /srv/identity /var/lib/holdfast-3/IDENTITY
    serves holdfast-3

    echo "Giving up"
    systemctl stop holdfast-3
    (echo "$variables"; echo HOLDFAST_LISTEN_HTTP=127.0.0.1:7473) >/etc/default/holdfast-3
    systemctl reset-failed holdfast-3 2>/dev/null || true
    systemctl start holdfast-3 || true
    await "a port in use (exit 1) is tried again" 10 eval '[ "$(of holdfast-3 NRestarts)" -ge 1 ]'
    await "ten starts, then the unit stays down" 60 eval 'is holdfast-3 ActiveState failed && [ "$(of holdfast-3 NRestarts)" -ge 9 ]'
    echo "$variables" >/etc/default/holdfast-3
    ! systemctl start holdfast-3 2>/dev/null || bad "the limit of starts did not hold"
    systemctl reset-failed holdfast-3
    expect "after systemctl reset-failed it starts" systemctl start holdfast-3
    await "all three are ready" 30 all_ready
    mkdir -p /etc/systemd/system/holdfast-3.service.d
    printf '[Service]\nExecStart=\nExecStart=/usr/local/bin/no-holdfast\n' >/etc/systemd/system/holdfast-3.service.d/gone.conf
    systemctl daemon-reload
    systemctl stop holdfast-3
    ! systemctl start holdfast-3 2>/dev/null || bad "systemctl start claims success without a binary"
    good "without a binary systemctl start fails (Type=exec)"
    systemctl stop holdfast-3
    rm /etc/systemd/system/holdfast-3.service.d/gone.conf
    systemctl daemon-reload
    mv /etc/holdfast/holdfast-3.toml /srv/
    ! systemctl start holdfast-3 2>/dev/null || bad "systemctl start claims success without a configuration"
    good "without a configuration file systemctl start fails"
    mv /srv/holdfast-3.toml /etc/holdfast/
    serves holdfast-3
    expect "all 21 records are there" has_records 21
    echo "$trial things hold."
}

# ---------------------------------------------------------------------------------------------------------------------
# Outside: the machine that the trial runs in
# ---------------------------------------------------------------------------------------------------------------------

clean_up() {
    local status=$?
    trap - EXIT INT TERM HUP
    # PID 1 of the namespaces takes all processes in it along, and they their mounts.
    if [ -n "${machine_pid:-}" ]; then
        kill -KILL "$machine_pid" 2>/dev/null || true
        wait "$machine_pid" 2>/dev/null || true
    fi
    umount -R "$work/layers" 2>/dev/null || true
    machine_remove_groups "$group" || true
    umount "$work/cgroup" 2>/dev/null || true
    rm -rf --one-file-system "$work"
    [ ! -d "$group" ] || { say "left behind: $group"; status=1; }
    [ ! -e "$work" ] || { say "left behind: $work"; status=1; }
    [ -d "$group" ] || [ -e "$work" ] || say "nothing is left behind"
    exit "$status"
}

main() {
    local reason
    reason=$(machine_needs) || skip "$reason"
    machine_needs
    if [ -z "${TRY_SYSTEMD_MOUNTS:-}" ]; then
        # What is mounted from here on ends with this process, however it ends.
        TRY_SYSTEMD_MOUNTS=1 exec unshare --mount --propagation private bash "$self" "$binary"
    fi
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/try-systemd.XXXXXX")
    group=$work/cgroup/try-systemd.$$
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    { machine_groups "$work" && mkdir "$group" 2>/dev/null; } || skip "no control group can be made"
    machine_prepare "$work" "$deploy" "$binary" /try || skip "no overlay of the file system can be mounted"

    say "$("$systemd" --version | head -n 1), $(sha256sum "$binary" | cut -c 1-12) $binary"
    machine_start "$work" "$group" try-systemd || skip "no machine can be run here"
    say "systemd is up as PID 1 of its own namespaces ($machine_state)"
    "${machine_enter[@]}" timeout 400 bash /try/deploy/try-systemd.sh --inside &
    # In the background, so that a signal to this script is answered at once.
    local status=0
    wait $! || status=$?
    [ "$status" = 0 ] || { say "FAILED$([ "$status" != 124 ] || echo ": not done after 400 s")"; exit 1; }
    say "passed"
}

case "${1:-}" in
    --inside) inside ;;
    '' | -*)
        sed -n '2,9s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
    *)
        [ -x "$1" ] || { say "no such program: $1" >&2; exit 2; }
        self=$(realpath "$0")
        binary=$(realpath "$1")
        deploy=$(dirname "$self")
        . "$deploy/machine.sh"
        main
        ;;
esac
