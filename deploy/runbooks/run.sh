#!/usr/bin/env bash
# Tries the runbooks in this folder: runs every command that stands in them, as written, on machines that are made for
# it, each a systemd in namespaces of its own with disks of its own and an address in a network that only they have.
#
#   deploy/runbooks/run.sh target/release/holdfast [RUNBOOK...]      all of them, or some: bootstrap, replace, ...
#
# Each runbook gets machines of its own, on which bootstrap.md was followed, twenty records, and the disaster that it is
# for (before_* below); afterwards the records must be there, and what the runbook promises must hold (after_*).
# VERBOSE=1 shows what the commands say.
#
# In a runbook
#   ```sh               is run on node1; `sh node2 node3` names other machines, one after the other
#   ```sh ... exit=3    ends with this code, else with 0; the block runs under `set -eu`, for at most three minutes
#   ```sh env           is said before each later block, on every machine
#   ```text             after a block: each line stands in its output; … is anything, blanks are as good as one
#   <!-- machines: node4 -->   more machines than node1, node2 and node3
#   <!-- disks: 64 of 160 MiB -->   each machine's data lies on an ext4 of that size, on a volume that has grown to that one
#
# Needs what deploy/try-systemd.sh needs, `ip`, and for disks mkfs.ext4, resize2fs and loop devices; else it says "SKIPPED: ..." and exits 0 (under CI or with
# REQUIRE_RUNBOOKS=1: 1). Exit 1: a command does not do what the runbook says. Takes about half a minute for each.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

say() { echo "try-runbooks: $*"; }

skip() {
    say "SKIPPED: $*"
    [ -z "${CI:-}${REQUIRE_RUNBOOKS:-}" ] || exit 1
    exit 0
}

# ---------------------------------------------------------------------------------------------------------------------
# Machines
# ---------------------------------------------------------------------------------------------------------------------

declare -A enter pids
loads=()
disks=
volumes=()

# on NODE COMMAND...: runs it there.
on() { ${enter[$1]} "${@:2}"; }

bad() {
    local node
    echo "  FAILED: $*"
    for node in "${!enter[@]}"; do
        on "$node" journalctl --no-pager -q -o cat -n 8 -u holdfast 2>/dev/null | cut -c 1-300 | sed "s/^/    $node: /" || true
    done
    exit 1
}

# Mounts an ext4 of $disks (MiB, "of" MiB of the volume) at $2, from a file in $1. The kernel lets go of the volume once
# nobody mounts it or has it open any more.
give_disk() {
    truncate -s "${disks#* of }M" "$1/disk"
    mkfs.ext4 -q -F -m 0 "$1/disk" "${disks% of *}M" || skip "no ext4 can be made"
    umount "$2"
    mount -o loop "$1/disk" "$2" || skip "no loop device can be mounted"
    volume=$(findmnt -n -o SOURCE "$2")
}

add_machine() {
    local node=$1 place=$site/$1 number=${1#node} volume= kept
    local root=$place/layers/root
    mkdir "$place"
    mkdir "$group/$node"
    machine_prepare "$place" "$deploy" "$binary" /usr/local/src/holdfast || skip "no overlay of the file system can be mounted"
    cp "$site/hosts" "$root"/etc/hosts
    # A share of another site's file server, as far as the machine can tell.
    mkdir "$root"/mnt/vault
    mount --bind "$site/vault" "$root"/mnt/vault
    [ -z "$disks" ] || give_disk "$place" "$root"/var/lib/holdfast
    machine_start "$place" "$group/$node" "$node" || skip "no machine can be run here"
    enter[$node]=${machine_enter[*]}
    pids[$node]=$machine_pid
    ip link add "$node" type veth peer name eth0 netns "$(cat "$place/pid")"
    ip link set "$node" master lan up
    on "$node" ip addr add "10.74.0.$number/24" dev eth0
    on "$node" ip link set eth0 up
    on "$node" ip link set lo up
    if [ -n "$volume" ]; then
        # It is the machine's alone to unmount, and stays there while it does.
        exec {kept}<"$volume"
        volumes+=("$kept")
        umount "$root"/var/lib/holdfast
        on "$node" mknod -m 600 "$volume" b $(stat -c '0x%t 0x%T' "$volume")
    fi
}

end_machines() {
    local node
    for node in "${!pids[@]}"; do
        kill -KILL "${pids[$node]}" 2>/dev/null || true
        wait "${pids[$node]}" 2>/dev/null || true
        umount -R "$site/$node/layers" 2>/dev/null || true
        ip link del "$node" 2>/dev/null || true
    done
    for node in "${volumes[@]}"; do exec {node}<&-; done
    enter=() pids=() volumes=()
    [ -z "${group:-}" ] || machine_remove_groups "$group" || true
    [ -z "${site:-}" ] || rm -rf --one-file-system "$site"
}

# ---------------------------------------------------------------------------------------------------------------------
# Runbooks
# ---------------------------------------------------------------------------------------------------------------------

# Splits a runbook into $site/steps/N.head (the words behind ```), N.body, N.line; the text block that follows a step
# becomes N.told.
split() {
    rm -rf "$site/steps"
    mkdir "$site/steps"
    awk -v to="$site/steps/" '
        !on && /^ *```(sh|text)( |$)/ {
            on = 1
            match($0, /^ */)
            indent = RLENGTH
            sub(/^ *```/, "")
            file = ""
            if ($1 == "sh") { n++; $1 = ""; print > (to n ".head"); print NR > (to n ".line"); file = to n ".body"; told = n }
            else if (told) { file = to told ".told"; told = 0 }
            next
        }
        !on && /^ *```/ { on = 1; file = ""; next }
        on && /^ *```$/ { on = 0; next }
        on && file != "" { print substr($0, indent + 1) > file }
        !on && /^[0-9]+\. |^#/ { told = 0 }
    ' "$1"
}

# One step on one machine.
step() {
    local book=$1 n=$2 node=$3 want=$4 code=0 line told squeezed pattern
    [ -n "${enter[$node]:-}" ] || bad "$book:$(cat "$site/steps/$n.line"): there is no machine $node"
    { echo "set -eu"; cat "$site/env" "$site/steps/$n.body"; } >"$site/script"
    # Not into a pipe: what a step leaves running would hold it open.
    timeout 180 ${enter[$node]} bash -s <"$site/script" >"$site/out" 2>&1 || code=$?
    if [ "$code" != "$want" ]; then
        sed 's/^/    > /' "$site/steps/$n.body"
        tail -n 20 "$site/out" | sed 's/^/    /'
        bad "$book:$(cat "$site/steps/$n.line") on $node: exit $code, not $want$([ "$code" != 124 ] || echo " (not done after 180 s)")"
    fi
    [ -z "${VERBOSE:-}" ] || sed "s/^/    $node: /" "$site/out"
    [ -e "$site/steps/$n.told" ] || return 0
    while read -r line; do
        [ -n "$line" ] || continue
        pattern=$(tr -s ' \t' ' ' <<<"$line" | sed -e 's/[][*?\\]/\\&/g' -e 's/…/*/g')
        told=
        while read -r squeezed; do
            # shellcheck disable=SC2053 # It is a pattern.
            [[ $squeezed == $pattern ]] && { told=1; break; }
        done < <(tr -s ' \t' ' ' <"$site/out")
        [ -n "$told" ] || { sed 's/^/    /' "$site/out"; bad "$book:$(cat "$site/steps/$n.line") on $node does not say: $line"; }
    done <"$site/steps/$n.told"
}

# All steps of a runbook; QUIET says nothing of those that are fine.
follow() {
    local book=$1 quiet=${2:-} n head word nodes want shown
    split "$here/$book.md"
    : >"$site/env"
    for ((n = 1; ; n++)); do
        [ -e "$site/steps/$n.head" ] || break
        nodes=() want=0
        for word in $(cat "$site/steps/$n.head"); do
            case "$word" in
                env) cat "$site/steps/$n.body" >>"$site/env"; continue 2 ;;
                exit=*) want=${word#exit=} ;;
                *) nodes+=("$word") ;;
            esac
        done
        [ ${#nodes[@]} -gt 0 ] || nodes=(node1)
        for word in "${nodes[@]}"; do
            step "$book.md" "$n" "$word" "$want"
            steps=$((steps + 1))
        done
        shown=$(head -n 1 "$site/steps/$n.body" | cut -c 1-80)
        [ "$(wc -l <"$site/steps/$n.body")" -le 1 ] || shown+=" …"
        [ -n "$quiet" ] || echo "  ok $book.md:$(cat "$site/steps/$n.line") on ${nodes[*]}: $shown"
    done
    [ "$n" -gt 1 ] || bad "$book.md has no command"
}

holdfast() { "$binary" "$@"; }
clients=node1:7470,node2:7470,node3:7470

# seed COUNT: records r1, r2, … of user ann.
seed() {
    local n
    for ((n = 1; n <= $1; n++)); do
        echo "payload $n" | holdfast record put --endpoint $clients --user ann --collection x-try --id "r$n" --file - >/dev/null ||
            bad "writing record $n"
    done
}

# All of them are read from ENDPOINTS.
records_there() {
    local n
    for n in {1..20}; do
        [ "$(holdfast record get --endpoint "$1" --user ann --collection x-try --id "r$n" 2>&1)" = "payload $n" ] ||
            bad "record r$n is gone: $(holdfast record get --endpoint "$1" --user ann --collection x-try --id "r$n" 2>&1)"
    done
}

# As after a shelf of disks died: nothing is left, and systemd tries to start what cannot run.
lose_disk() {
    on "$1" systemctl kill --kill-whom=main --signal=KILL holdfast
    on "$1" find /var/lib/holdfast -mindepth 1 -delete
    # It may have started again before the files were gone.
    on "$1" systemctl kill --kill-whom=main --signal=KILL holdfast 2>/dev/null || true
    on "$1" find /var/lib/holdfast -mindepth 1 -delete
}

# Clients that write all the time, through all nodes, as a frontend does: its library tries again by itself. They end with
# this process, however it ends, and after 5000 calls at the latest. What is refused with the reason $1 counts apart.
start_load() {
    local w
    export site binary clients
    export excused=${1:-none is}
    for w in 1 2 3; do
        setpriv --pdeathsig KILL bash -c '
            for ((n = 1; n <= 5000; n++)); do
                [ ! -e "$site/load-ends" ] || exit 0
                if echo "$1 $n" | setpriv --pdeathsig KILL "$binary" record put --endpoint $clients --user "load-$1" \
                    --collection x-try --id "l$n" --file - >/dev/null 2>>"$site/load-errors-$1"; then
                    echo "l$n" >>"$site/load-ok-$1"
                elif tail -n 1 "$site/load-errors-$1" | grep -q "$excused"; then
                    echo "l$n" >>"$site/load-refused"
                else
                    echo "l$n" >>"$site/load-failed"
                fi
            done' load "$w" &
        loads+=($!)
    done
}

# Each client gets so many more writes through, in a minute at most.
load_goes_on() {
    local w before until=$((SECONDS + 60))
    for w in 1 2 3; do
        before=$(wc -l <"$site/load-ok-$w")
        until [ "$(wc -l <"$site/load-ok-$w")" -ge $((before + $1)) ]; do
            [ "$SECONDS" -lt "$until" ] || bad "clients get no writes through: $(tail -n 3 "$site"/load-errors-*)"
            sleep 0.2
        done
    done
}

end_load() {
    local w lost=0 count=0 seen
    touch "$site/load-ends"
    wait "${loads[@]}"
    loads=()
    [ ! -e "$site/load-failed" ] || bad "$(wc -l <"$site/load-failed") calls of clients failed: $(tail -n 3 "$site"/load-errors-*)"
    for w in 1 2 3; do
        seen=$(holdfast record ls --endpoint $clients --user "load-$w" --collection x-try -o jsonl | grep -o '"id":"l[0-9]*"' | sort -u | wc -l)
        [ "$seen" = "$(wc -l <"$site/load-ok-$w")" ] || lost=$((lost + 1))
        count=$((count + seen))
    done
    [ "$lost" = 0 ] || bad "acknowledged records are not there"
    [ "$count" -gt 50 ] || bad "only $count calls were made: that proves nothing"
    echo "  ok $count calls of clients went on meanwhile: none failed, and all records are there"
}

# Waits until the vault holds all that was committed by now; what a loss takes after that is none of these records.
shipped() {
    local committed held until=$((SECONDS + 30))
    committed=$(holdfast cluster status --endpoint node1:7472 -o json | grep -o '"committed_index": [0-9]*' | grep -o '[0-9]*$' | sort -n | tail -n 1)
    while true; do
        held=$(holdfast restore plan --from "file://$site/vault/holdfast" -o json | grep -o '"last_index": [0-9]*' | grep -o '[0-9]*$')
        [ "${held:-0}" -lt "$committed" ] || return 0
        [ "$SECONDS" -lt "$until" ] || bad "the vault holds $held of $committed"
        sleep 0.2
    done
}

before_rolling-restart() { start_load; }
after_rolling-restart() { end_load; records_there $clients; }
before_upgrade() { start_load; }
after_upgrade() { end_load; records_there $clients; }
before_replace() { lose_disk node2; }
after_replace() { records_there node1:7470,node3:7470,node4:7470; }
before_restore() { shipped; }
before_array-loss() { shipped; local node; for node in node1 node2 node3; do lose_disk $node; done; }
before_quorum-loss() {
    local node until=$((SECONDS + 30))
    shipped
    # The survivor holds all of it too; what is lost without a vault is then nothing.
    until [ "$(holdfast cluster status --endpoint node1:7472 -o json | grep -o '"last_log_index": [0-9]*' | sort -u | wc -l)" = 1 ]; do
        [ "$SECONDS" -lt "$until" ] || bad "the logs do not become equal"
        sleep 0.2
    done
    # Lost, and found again too late.
    for node in node2 node3; do on $node systemctl kill --kill-whom=main --signal=KILL holdfast; done
    for node in node2 node3; do
        on $node systemctl stop holdfast
        cp -a "$site/$node/data" "$site/old-$node"
        on $node find /var/lib/holdfast -mindepth 1 -delete
        on $node systemctl start holdfast
    done
}
# refusing NODE: what it says of its disk; 0 there is room, 1 nearly full, 2 full.
refusing() { curl -fsS "http://$1:7473/metrics" | sed -n 's/^holdfast_storage_refusing //p'; }
called_low() { { holdfast cluster health --endpoint node1:7472,node2:7472,node3:7472 || true; } | grep -A 3 DISK_LOW | grep "node $1: "; }
takes_all_room() { on "$1" dd if=/dev/zero of=/var/lib/holdfast/copy-of-the-old-array.tar bs=64k status=none 2>/dev/null || true; }
before_disk-full() {
    local node n said
    touch "$site/load-ok-1" "$site/load-ok-2" "$site/load-ok-3"
    start_load 'deletes are still taken\|nothing more is taken'
    # One disk, to its last block: that stops nobody, and clears by itself.
    takes_all_room node3
    await "node3 is called low" 20 called_low 3
    load_goes_on 50
    [ ! -e "$site/load-refused" ] || bad "one full disk of three refused $(wc -l <"$site/load-refused") writes"
    [ "$(refusing node3)" != 0 ] || bad "node3 takes data"
    on node3 rm /var/lib/holdfast/copy-of-the-old-array.tar
    await "one full disk stopped nobody, and there is room on it again" 30 eval '[ "$(refusing node3)" = 0 ]'
    # Records fill all of them. What the log holds twice is given back before a patient client gives up.
    head -c 200000 /dev/urandom >"$site/photo"
    for ((n = 1; ; n++)); do
        [ "$n" -le 400 ] || bad "$n photos of 200 kB fit on disks of $disks"
        said=$(holdfast record put --endpoint $clients --user bob --collection photos --id "p$n" --file "$site/photo" 2>&1 >/dev/null) || break
    done
    case "$said" in *"MiB that are kept free"*"deletes are still taken"*"make room"*) ;; *) bad "photo $n is refused otherwise: $said" ;; esac
    [ "$n" -gt 40 ] || bad "only $n photos fit on disks of $disks"
    photos=$n
    good "writes are refused after $n photos"
    takes_all_room node2
    await "node2 is called low" 20 called_low 2
    said=$(refusing node1)$(refusing node2)$(refusing node3)
    case "$said" in *2*2* | *0*0*) bad "refused too late or too early: $said" ;; esac
    for n in 1 2 3; do
        said=$(echo x | holdfast record put --endpoint $clients --deadline-ms 2000 --user bob --collection x-no --id no --file - 2>&1) &&
            bad "a small record is taken"
        holdfast record rm --endpoint $clients --user bob --collection photos --id "p$n" >/dev/null || bad "a delete is refused"
    done
    good "deletes are taken meanwhile"
    said=$(wc -l <"$site/load-refused") || bad "no client was refused"
    good "$said calls of clients were refused meanwhile"
}
after_disk-full() {
    local n
    load_goes_on 20
    for ((n = 1; n <= photos + 100; n++)); do
        holdfast record put --endpoint $clients --user bob --collection photos --id "q$n" --file "$site/photo" >/dev/null ||
            bad "photo $n does not fit on the larger disks"
    done
    good "$((photos + 100)) photos fit on the larger disks"
    end_load
    records_there $clients
    for n in node1 node2 node3; do
        [ "$(on $n systemctl show -p NRestarts --value holdfast)" = 0 ] || bad "$n was started again"
    done
}
after_quorum-loss() {
    local node until ended='' told
    records_there $clients
    told=$(on node1 find /mnt/vault/holdfast -not -user holdfast)
    [ -z "$told" ] || bad "in the vault, not of the nodes' account: $told"
    # The old majority comes back, where clients still look for it: it ends, and is not started again.
    for node in node2 node3; do
        on $node systemctl stop holdfast
        mkdir "$site/new-$node"
        cp -a "$site/$node/data/." "$site/new-$node"
        find "$site/$node/data" -mindepth 1 -delete
        cp -a "$site/old-$node/." "$site/$node/data"
    done
    for node in node2 node3; do on $node systemctl start holdfast; done
    until=$((SECONDS + 60))
    while [ -z "$ended" ]; do
        [ "$SECONDS" -lt "$until" ] || bad "the old cluster does not end"
        # Something to ship.
        echo late | holdfast record put --endpoint node2:7470,node3:7470 --deadline-ms 500 --user ann --collection x-late --id late --file - >/dev/null 2>&1 || true
        for node in node2 node3; do [ "$(on $node systemctl is-failed holdfast)" != failed ] || ended=$node; done
        sleep 0.2
    done
    told=$(on $ended systemctl show -p ExecMainStatus --value holdfast)
    [ "$told" = 3 ] || bad "$ended of the old cluster ended with exit $told, not 3"
    told=$(on $ended systemctl show -p NRestarts --value holdfast)
    [ "$told" = 0 ] || bad "$ended of the old cluster was started again $told times"
    told=$(on $ended journalctl -q -o cat -n 20 -u holdfast)
    [[ $told == *"this history was ended before index "*" by a recovery, and "*" goes on; stop this cluster"* ]] ||
        bad "$ended of the old cluster does not say why it ended"
    echo "  ok old nodes come back: $ended leads, ends with exit 3 and stays down"
    for node in node2 node3; do
        on $node systemctl stop holdfast
        on $node systemctl reset-failed holdfast 2>/dev/null || true
        find "$site/$node/data" -mindepth 1 -delete
        cp -a "$site/new-$node/." "$site/$node/data"
        on $node systemctl start holdfast
    done
    records_there $clients
    echo "  ok the new cluster goes on"
    # What was made without a vault: carried over, it serves as well.
    for node in node1 node2 node3; do
        on $node systemctl stop holdfast
        on $node find /var/lib/holdfast -mindepth 1 -delete
        on node1 tar -C /var/lib/holdfast-new/$node -c . | on $node tar -C /var/lib/holdfast -x
    done
    for node in node1 node2 node3; do on $node systemctl start holdfast; done
    records_there $clients
    echo "  ok a cluster out of the survivor alone serves all records"
}

has_function() { declare -F "$1" >/dev/null; }

try_runbook() {
    local book=$1 node more
    site=$work/$book
    group=$work/cgroup/try-runbooks.$$
    mkdir -p "$site/vault" "$group"
    { echo "127.0.0.1 localhost"; for node in {1..6}; do echo "10.74.0.$node node$node"; done; } >"$site/hosts"
    mount --bind "$site/hosts" /etc/hosts
    more=$(sed -n 's/^<!-- machines: \(.*\) -->$/\1/p' "$here/$book.md")
    disks=$(sed -n 's/^<!-- disks: \(.*\) MiB -->$/\1/p' "$here/$book.md")
    echo "$book.md"
    for node in node1 node2 node3 $more; do add_machine "$node"; done
    if [ "$book" = bootstrap ]; then
        follow bootstrap
        seed 20
    else
        follow bootstrap quiet
        seed 20
        if has_function "before_$book"; then "before_$book"; fi
        follow "$book"
    fi
    if has_function "after_$book"; then "after_$book"; else records_there $clients; fi
    umount /etc/hosts
    end_machines
}

# ---------------------------------------------------------------------------------------------------------------------

clean_up() {
    local status=$? path
    trap - EXIT INT TERM HUP
    # Held first, so that no call begins between looking and killing.
    for path in "${loads[@]}"; do
        kill -STOP "$path" 2>/dev/null || continue
        kill -KILL "$path" $(cat "/proc/$path/task/$path/children" 2>/dev/null) 2>/dev/null || true
    done
    umount /etc/hosts 2>/dev/null || true
    end_machines
    umount "$work/cgroup" 2>/dev/null || true
    rm -rf --one-file-system "$work"
    for path in "${group:-$work}" "$work"; do [ ! -e "$path" ] || { say "left behind: $path"; status=1; }; done
    [ -e "$work" ] || say "nothing is left behind"
    exit "$status"
}

main() {
    local reason book
    reason=$(machine_needs ip) || skip "$reason"
    machine_needs ip
    if [ -z "${TRY_RUNBOOKS_NAMESPACES:-}" ]; then
        unshare --net --mount true 2>/dev/null || skip "no network namespace can be made"
        # What is mounted, bridged and bound from here on ends with this process, however it ends.
        TRY_RUNBOOKS_NAMESPACES=1 exec unshare --mount --propagation private --net bash "$self" "$binary" "${books[@]}"
    fi
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/try-runbooks.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    machine_groups "$work" || skip "no control group can be made"
    ip link set lo up
    ip link add lan type bridge 2>/dev/null || skip "no bridge can be made"
    ip addr add 10.74.0.254/24 dev lan
    ip link set lan up
    say "$("$systemd" --version | head -n 1), $(sha256sum "$binary" | cut -c 1-12) $binary"
    steps=0
    for book in "${books[@]}"; do try_runbook "$book"; done
    say "passed: ${#books[@]} runbooks, $steps steps"
}

case "${1:-}" in
    '' | -*)
        sed -n '2,20s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
    *)
        [ -x "$1" ] || { say "no such program: $1" >&2; exit 2; }
        self=$(realpath "$0")
        binary=$(realpath "$1")
        here=$(dirname "$self")
        deploy=$(dirname "$here")
        shift
        books=("$@")
        if [ $# = 0 ]; then
            for book in "$here"/*.md; do [ "${book##*/}" = README.md ] || books+=("$(basename "$book" .md)"); done
        fi
        for book in "${books[@]}"; do [ -e "$here/$book.md" ] || { say "no such runbook: $book" >&2; exit 2; }; done
        . "$deploy/machine.sh"
        . "$deploy/trial.sh"
        main
        ;;
esac
