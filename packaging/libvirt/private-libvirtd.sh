#!/usr/bin/env bash
# A libvirt daemon of its own: several "hosts" on one machine for the demo and the tests, without systemd, and without
# touching the libvirt that the machine may run for itself.
#
#   private-libvirtd.sh DIR [run]     run the daemon in the foreground (the process becomes libvirtd)
#   private-libvirtd.sh DIR guard     the same, but stay beside it: when standard input closes, or on TERM or INT, stop the
#                                     daemon and all its domains. A parent that holds the other end of a pipe can die
#                                     in any way and leaves nothing running.
#   private-libvirtd.sh DIR stop      kill the daemon of DIR and every process that it started, QEMU included
#   private-libvirtd.sh DIR uri       print the URI to connect to
#
#   LUC_LIBVIRT_CACHE=DIR   share the cache of what QEMU can do, which costs each new daemon 4 s to find out
#
# All state lies in DIR. The socket is DIR/run/libvirt/libvirt-sock; it is there some time after the start (1 s), and the
# daemon's process id is in DIR/run/libvirtd.pid. Domains survive the death of the daemon and are found again by the next
# one on the same DIR, as on a real host.
#
# Run by root, the daemon is a system daemon in a mount namespace, with DIR's directories bound over the system's. Run by
# anybody else it is a session daemon. These settings are for demos and tests on a machine of one's own: domains are not
# confined, and run as whoever runs this. A production host keeps its distribution's libvirt.
set -euo pipefail

die() { printf 'private-libvirtd: %s\n' "$*" >&2; exit 1; }

[ $# -ge 1 ] && [ $# -le 2 ] || { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit 2; }
action=${2:-run}
mkdir -p "$1"/{etc,run,lib,log,cache}/libvirt
dir=$(cd "$1" && pwd -P)
export PATH=$PATH:/usr/sbin:/sbin

socket=$dir/run/libvirt/libvirt-sock
[ ${#socket} -lt 100 ] || die "the path $socket is too long for a socket (100 bytes): choose a shorter directory"
if [ "$(id -u)" = 0 ]; then mode=system; else mode=session; fi

# The processes that belong to DIR: those that see its files as /var/lib/libvirt, or a session's, that name it.
processes() {
    if [ $mode = system ]; then
        local id
        id=$(stat -L -c '%d:%i' "$dir/lib/libvirt")
        # A process may go while we look.
        { stat -L -c '%d:%i %n' /proc/[0-9]*/root/var/lib/libvirt 2>/dev/null || true; } |
            awk -v id="$id" '$1 == id { split($2, path, "/"); print path[3] }'
    else
        { grep -lzF -- "$(link)" /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null || true; } | cut -d/ -f3 | sort -u |
            while read -r pid; do
                case $(cat "/proc/$pid/comm" 2>/dev/null) in libvirtd | qemu-* | dnsmasq | virt*) echo "$pid" ;; esac
            done
    fi
}

# A session daemon makes sockets deep below its directories: give them a short name.
link() { printf '/tmp/luc-libvirt-%s-%s' "$(id -u)" "$(printf %s "$dir" | sha256sum | cut -c1-12)"; }

stop() {
    local pids tries=0
    while pids=$(processes) && [ -n "$pids" ]; do
        # shellcheck disable=SC2086
        kill -KILL $pids 2>/dev/null || true
        tries=$((tries + 1))
        [ $tries -lt 100 ] || die "cannot kill: $pids"
        sleep 0.05
    done
    rm -f "$dir/run/libvirtd.pid" "$socket"
    [ $mode = system ] || rm -f "$(link)"
}

configure() {
    command -v libvirtd >/dev/null || die "libvirtd is missing: run packaging/install-deps.sh demo"
    [ -s "$dir/host-uuid" ] || cat /proc/sys/kernel/random/uuid >"$dir/host-uuid"
    # No keep-alive: a starved test machine must not lose its connections. One identity per daemon: libvirt refuses to
    # migrate between equal ones.
    cat >"$dir/etc/libvirt/libvirtd.conf" <<CONF
host_uuid = "$(cat "$dir/host-uuid")"
auth_unix_ro = "none"
auth_unix_rw = "none"
keepalive_interval = -1
log_outputs = "3:file:$dir/log/libvirtd.log"
CONF
    cat >"$dir/etc/libvirt/qemu.conf" <<'CONF'
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
CONF
    if [ $mode = system ]; then
        id libvirt-qemu >/dev/null 2>&1 || die "the account libvirt-qemu is missing: run packaging/install-deps.sh demo"
        printf 'unix_sock_group = "root"\nunix_sock_rw_perms = "0700"\n' >>"$dir/etc/libvirt/libvirtd.conf"
        printf 'user = "root"\ngroup = "root"\n' >>"$dir/etc/libvirt/qemu.conf"
    fi
}

# Becomes libvirtd. With the argument "tied", libvirtd dies when the process that called this does.
start() {
    local tie=()
    [ "${1:-}" != tied ] || tie=(setpriv --pdeathsig KILL)
    local cache=$dir/cache/libvirt
    if [ -n "${LUC_LIBVIRT_CACHE:-}" ]; then mkdir -p "$LUC_LIBVIRT_CACHE" && cache=$(cd "$LUC_LIBVIRT_CACHE" && pwd -P); fi
    local daemon=(libvirtd -p "$dir/run/libvirtd.pid")
    # Of a daemon that was killed; libvirtd overwrites it, but whoever waits for it must not find the old one.
    rm -f "$socket"
    if [ $mode = system ]; then
        mkdir -p /etc/libvirt /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
        # shellcheck disable=SC2016
        exec "${tie[@]}" unshare --mount --propagation private bash -c '
            dir=$1 cache=$2; shift 2
            mount --bind "$dir/etc/libvirt" /etc/libvirt &&
                mount --bind "$dir/run/libvirt" /run/libvirt &&
                mount --bind "$dir/lib/libvirt" /var/lib/libvirt &&
                mount --bind "$dir/log/libvirt" /var/log/libvirt &&
                mount --bind "$cache" /var/cache/libvirt &&
                exec "$@"' -- "$dir" "$cache" "${daemon[@]}"
    else
        ln -sfn "$dir" "$(link)"
        XDG_RUNTIME_DIR=$(link)/run XDG_CONFIG_HOME=$(link)/etc XDG_DATA_HOME=$(link)/lib XDG_CACHE_HOME=$(link)/cache \
            exec "${tie[@]}" "${daemon[@]}"
    fi
}

case $action in
uri) echo "qemu:///$mode?socket=$socket" ;;
stop) stop ;;
run)
    configure
    start
    ;;
guard)
    configure
    trap 'stop; exit 0' TERM INT HUP
    start tied </dev/null &
    daemon=$!
    # Waits for the end of standard input, and tells.
    { while read -r -n 4096 _; do :; done; kill -TERM $$ 2>/dev/null; } <&0 &
    watch=$!
    status=0
    wait $daemon || status=$?
    # The daemon went by itself, or somebody killed it: its domains live on, as they would on a real host.
    kill $watch 2>/dev/null || true
    exit $status
    ;;
*) die "unknown action '$action': run, guard, stop and uri are known" ;;
esac
