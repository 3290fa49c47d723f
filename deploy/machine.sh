# shellcheck shell=bash
# Machines for trials: each is a systemd as PID 1 of namespaces of its own, over layers that hide what this machine has
# configured and catch what is written. To be sourced by a script that is root, has `set -e`, and sits in a mount
# namespace of its own: what is mounted here ends with it.
#
#   machine_needs [TOOL...]                      says why no such machine can run here, and fails
#   machine_groups WORK                          makes WORK/cgroup, where control groups can be made
#   machine_prepare WORK DEPLOY BINARY TREE      lays out a machine in WORK/layers/root, with the built tree in TREE
#   machine_start WORK GROUP HOSTNAME            starts it; sets machine_pid, machine_state, and machine_enter: a command
#                                                that runs what follows in it
#   machine_remove_groups GROUP                  removes a control group and all below it, once its processes have ended

machine_here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")

machine_needs() {
    local path tool
    for path in /lib/systemd/systemd /usr/lib/systemd/systemd; do [ ! -x $path ] || systemd=$path; done
    [ -n "${systemd:-}" ] || { echo "systemd is not installed"; return 1; }
    export systemd
    [ "$(id -u)" = 0 ] || { echo "this needs root"; return 1; }
    for tool in unshare nsenter setpriv pivot_root systemd-sysusers journalctl curl "$@"; do
        command -v "$tool" >/dev/null || { echo "no $tool found"; return 1; }
    done
    unshare --mount --propagation private true 2>/dev/null || { echo "no mount namespace can be made"; return 1; }
}

machine_groups() {
    mkdir "$1/cgroup"
    mount -t cgroup2 cgroup2 "$1/cgroup" 2>/dev/null
}

# Layers over what is here, so that nothing written gets through.
machine_prepare() {
    local root=$1/layers/root path n=0
    mkdir "$1/layers" "$1/data"
    mount -t tmpfs -o mode=755 tmpfs "$1/layers" || return
    mkdir "$root"
    for path in / /usr /usr/local /etc /var /var/lib /srv; do
        [ "$path" = / ] || mountpoint -q "$path" || continue
        n=$((n + 1))
        mkdir "$1/layers/up$n" "$1/layers/work$n"
        mount -t overlay overlay -o "lowerdir=$path,upperdir=$1/layers/up$n,workdir=$1/layers/work$n" "$root$path" || return
    done
    mkdir -p "$root"/{proc,sys,dev,run,tmp,srv,mnt,var/log,etc/systemd/system,usr/local/bin} "$root$4/target/release"
    # Nothing that this machine has configured, mounted or logged.
    for path in run tmp srv mnt var/log etc/systemd/system; do mount -t tmpfs -o mode=755 tmpfs "$root/$path"; done
    chmod 1777 "$root/tmp"
    mkdir "$root/tmp/generators"
    mount --bind "$root/tmp/generators" "$root$(dirname "$systemd")/system-generators"
    : >"$root/etc/fstab"
    tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
    rm -rf "$root"/etc/holdfast "$root"/etc/default/holdfast* "$root"/etc/sysusers.d "$root"/var/lib/holdfast*
    sed -i '/^holdfast:/d' "$root"/etc/{passwd,group,shadow,gshadow} 2>/dev/null || true
    # The node's data is a mount of its own, on a disk and not in memory.
    mkdir "$root/var/lib/holdfast"
    mount --bind "$1/data" "$root/var/lib/holdfast"
    cp -a "$2" "$root$4/deploy"
    cp "$3" "$root$4/target/release/holdfast"
}

# As PID 1 of its namespaces: mounts what a machine has and becomes systemd.
machine_boot() {
    local work=$1 root=$1/layers/root path
    read -r path _ </proc/self/stat # By the outer /proc, so it is the outer process id.
    echo "$path" >"$work/pid"
    hostname "$2"
    echo "$2" >"$root/etc/hostname"
    mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
    # What is set there belongs to the machine outside.
    for path in sys sysrq-trigger; do
        [ -e "$root/proc/$path" ] || continue
        mount --bind "$root/proc/$path" "$root/proc/$path"
        mount -o remount,bind,ro,nosuid,nodev,noexec "$root/proc/$path"
    done
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o nosuid,mode=755 tmpfs "$root/dev"
    for path in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
        IFS=: read -r name major minor <<<"$path"
        mknod -m 666 "$root/dev/$name" c "$major" "$minor"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    mkdir "$root/dev/shm" "$root/dev/pts"
    mount -t tmpfs -o nosuid,nodev tmpfs "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    cd "$root"
    mkdir -p "$root/.outside"
    pivot_root . .outside
    umount -l /.outside
    rmdir /.outside
    # A container as systemd knows it: it leaves clock, modules and hardware alone.
    exec env -i container=try PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        setpriv --bounding-set -sys_module,-sys_time,-sys_rawio,-syslog \
        "$systemd" --system --unit=basic.target --show-status=no --log-target=journal </dev/null >/dev/null 2>&1
}

machine_start() {
    local work=$1 group=$2 name=$3 left
    machine_state='' machine_enter=()
    (
        echo "$BASHPID" >"$group/cgroup.procs"
        exec setpriv --pdeathsig KILL unshare --kill-child=KILL --fork --pid --mount --cgroup --ipc --uts --net \
            bash -euc '. "$1/machine.sh" && machine_boot "$2" "$3"' boot "$machine_here" "$work" "$name"
    ) >"$work/boot" 2>&1 &
    machine_pid=$!
    for left in {300..0}; do
        kill -0 "$machine_pid" 2>/dev/null || break
        if [ -s "$work/pid" ]; then
            machine_enter=(nsenter --target "$(cat "$work/pid")" --mount --pid --cgroup --ipc --uts --net --root --wd
                env -i HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
            machine_state=$("${machine_enter[@]}" systemctl is-system-running 2>/dev/null || true)
            case "$machine_state" in running | degraded) return ;; esac
        fi
        sleep 0.1
    done
    sed 's/^/    /' "$work/boot"
    echo "systemd does not come up in namespaces here${machine_state:+ (it is $machine_state)}"
    return 1
}

machine_remove_groups() {
    local left
    for left in {50..0}; do
        [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [ -d "$1" ] || return 0
        sleep 0.1
    done
    return 1
}
