#!/usr/bin/env bash
# Installs the Debian packages that building, demonstrating and testing LUC need.
#
#   packaging/install-deps.sh [build] [demo] [test] [suite]        (default: build demo)
#
#   build   what `cargo build` needs: a C compiler, libvirt's headers
#   demo    libvirt and QEMU, and the tools that build the demo's guest image
#   test    demo, and Python for the OpenStack client
#   suite   demo, and libfaketime for wrong clocks: what `make check` and `make jepsen` need
#
#   HYPERVISOR=test   leaves QEMU out: the demo then runs on libvirt's own simulated hypervisor
#
# It may be run at any time by anyone: where nothing is missing it changes nothing, asks for no password and takes a
# few milliseconds. Otherwise it needs root or sudo. Nothing is started, enabled or configured; the daemons of the demo
# and of the tests have directories of their own (packaging/libvirt/private-libvirtd.sh).
set -euo pipefail

say() { printf 'install-deps: %s\n' "$*"; }
die() { printf 'install-deps: %s\n' "$*" >&2; exit 1; }

groups=("$@")
[ ${#groups[@]} -gt 0 ] || groups=(build demo)

wanted=()
need_user=0
for group in "${groups[@]}"; do
    case $group in
    build)
        wanted+=(gcc libc6-dev make pkg-config libvirt-dev)
        command -v cargo >/dev/null ||
            die "Rust is missing: install Rust 1.90 or newer (https://rustup.rs, or your distribution) and run this again."
        ;;
    demo | test | suite)
        wanted+=(libvirt-daemon libvirt-clients iproute2 procps util-linux)
        if [ "${HYPERVISOR:-}" != test ]; then
            # libvirt's QEMU driver refuses to start without the account that it would give its disks to.
            need_user=1
            wanted+=(libvirt-daemon-driver-qemu qemu-system-x86 qemu-utils xorriso)
            # For packaging/guest/build.sh. The guest's kernel is fetched and unpacked there, never installed.
            wanted+=(busybox-static syslinux syslinux-common mtools dosfstools fdisk cpio binutils xz-utils)
        fi
        [ "$group" != test ] || wanted+=(curl python3 python3-venv)
        [ "$group" != suite ] || wanted+=(libfaketime)
        ;;
    -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) die "unknown group '$group': build, demo, test and suite are known." ;;
    esac
done

if ! command -v dpkg-query >/dev/null; then
    # Not a Debian: the programs may be there all the same, so look for what is really used.
    missing=()
    for tool in cc pkg-config virsh libvirtd; do command -v "$tool" >/dev/null || missing+=("$tool"); done
    pkg-config --exists libvirt 2>/dev/null || missing+=("libvirt's headers (libvirt.pc)")
    if [ "${HYPERVISOR:-}" != test ]; then
        for tool in qemu-system-x86_64 qemu-img; do command -v "$tool" >/dev/null || missing+=("$tool"); done
    fi
    [ ${#missing[@]} -gt 0 ] || exit 0
    die "this machine has no apt, and lacks: ${missing[*]}. Please install them with your own package manager."
fi

missing=()
installed=$(dpkg-query -W -f '${Package} ${Status}\n' 2>/dev/null | awk '$4 == "installed" { print $1 }')
for package in $(printf '%s\n' "${wanted[@]}" | sort -u); do
    grep -qxF -- "$package" <<<"$installed" || missing+=("$package")
done
id libvirt-qemu >/dev/null 2>&1 && need_user=0

[ ${#missing[@]} -gt 0 ] || [ $need_user = 1 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "root is needed to install: ${missing[*]:-the account libvirt-qemu}. There is no sudo here; run this as root."
    as_root=(sudo)
fi

if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || die "apt-get is missing; please install: ${missing[*]}"
    say "installing: ${missing[*]}"
    apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
    "${apt[@]}" update || say "the package lists could not be brought up to date; trying with those that are here."

    # qemu-utils and qemu-system-x86 must come from one suite. Where the installed qemu-utils came from backports and
    # apt prefers the stable qemu-system-x86, apt would remove the one to install the other, or refuse.
    extra=()
    case " ${missing[*]} " in
    *" qemu-system-x86 "*)
        have=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null || true)
        candidate=$(apt-cache policy qemu-system-x86 | awk '/Candidate:/ { print $2 }')
        if [ -n "$have" ] && [ "${have%%+*}" != "${candidate%%+*}" ]; then
            if apt-cache madison qemu-system-x86 | awk '{ print $3 }' | grep -qxF -- "$have"; then
                say "qemu-utils is at $have: taking qemu-system-x86 from the same suite."
                for package in qemu-system-x86 qemu-system-common qemu-system-data; do
                    version=$(apt-cache madison "$package" | awk '{ print $3 }' | grep -F -- "${have%%+*}" | head -n 1)
                    [ -z "$version" ] || extra+=("$package=$version")
                done
            else
                version=$(apt-cache madison qemu-utils | awk '{ print $3 }' | grep -F -- "${candidate%%+*}" | head -n 1)
                [ -n "$version" ] ||
                    die "qemu-utils is at $have and qemu-system-x86 would be $candidate; no suite has both. Install matching versions of the two by hand."
                say "qemu-utils is at $have, which is not compatible with qemu-system-x86 $candidate: changing qemu-utils to $version."
                extra+=(--allow-downgrades "qemu-utils=$version")
                if grep -qxF qemu-block-extra <<<"$installed"; then extra+=("qemu-block-extra=$version"); fi
            fi
        fi
        ;;
    esac
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}" "${extra[@]}" >/dev/null ||
        die "apt could not install: ${missing[*]}"
fi

if [ $need_user = 1 ] && ! id libvirt-qemu >/dev/null 2>&1; then
    say "adding the system account libvirt-qemu"
    "${as_root[@]}" useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin libvirt-qemu ||
        die "the account libvirt-qemu could not be added"
fi
say "done"
