#!/usr/bin/env bash
# Builds the guest of the demo and the tests, out of Debian packages: a kernel, busybox and the script `init`.
#
#   packaging/guest/build.sh [DIR]        (default: target/guest)
#
# Leaves DIR/luc-guest.qcow2 (14 MB) and DIR/luc-guest.raw (the same disk), bootable by BIOS from a virtio or IDE disk in
# 96 MiB of memory. The guest finds its config-drive, says on its serial console what it found there, runs its user data
# if that is a script, keeps a shell on the console, and obeys the power button.
#
# It takes some seconds the first time, of which most is the download of the kernel (27 MB, kept in DIR), and nothing
# when neither the kernel nor these scripts have changed. It needs no root: the kernel is unpacked, never installed.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../target/guest}
mkdir -p "$out"
out=$(cd "$out" && pwd)

say() { printf 'guest: %s\n' "$*"; }
die() { printf 'guest: %s\n' "$*" >&2; exit 1; }

[ -f /usr/lib/syslinux/mbr/mbr.bin ] || die "syslinux-common is missing: run packaging/install-deps.sh demo"
for tool in dpkg-deb busybox cpio gzip mcopy mkfs.vfat sfdisk syslinux qemu-img strip; do
    PATH=$PATH:/usr/sbin:/sbin command -v $tool >/dev/null || die "$tool is missing: run packaging/install-deps.sh demo"
done
PATH=$PATH:/usr/sbin:/sbin

# One builder at a time: tests may start together.
exec 9>"$out/lock"
flock 9

stamp=$(cat "$here"/* | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ] && [ -s "$out/luc-guest.qcow2" ] && [ -s "$out/luc-guest.raw" ]; then
    exit 0
fi

find_kernel() { find "$out" -maxdepth 1 -name 'linux-image-*-cloud-amd64_*.deb' -size +1M | sort -V | tail -n 1; }
kernel=$(find_kernel)
if [ -z "$kernel" ]; then
    download() {
        local package
        package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/ { print $2; exit }')
        # Through a directory that apt's own account can write to, or it warns.
        [ -n "$package" ] && (cd "$fetch" && apt-get -qq download "$package")
    }
    fetch=$(mktemp -d)
    trap 'rm -rf "$fetch"' EXIT
    chmod 755 "$fetch"
    if [ "$(id -u)" = 0 ] && id _apt >/dev/null 2>&1; then chown _apt "$fetch"; fi
    say "downloading Debian's cloud kernel"
    if ! download; then
        say "the package lists do not lead to a kernel: bringing them up to date"
        if [ "$(id -u)" = 0 ]; then apt-get -qq update; else sudo apt-get -qq update; fi || true
        download || die "linux-image-cloud-amd64 cannot be downloaded: it comes from Debian, for amd64. Put its .deb into $out by hand."
    fi
    mv "$fetch"/*.deb "$out/"
    kernel=$(find_kernel)
fi
[ -n "$kernel" ] || die "no kernel package in $out"

work=$out/work
rm -rf "$work"
mkdir -p "$work"/kernel "$work"/root/{bin,dev,proc,sys,etc,tmp,config,disk,lib/modules}
dpkg-deb -x "$kernel" "$work/kernel"
version=$(ls "$work/kernel/lib/modules")
root=$work/root

cp /bin/busybox "$root/bin/busybox"
for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"; done
install -m 755 "$here/init" "$root/init"
install -m 755 "$here/udhcpc" "$root/etc/udhcpc"

# In the order in which they are loaded; what they depend on comes along. (The cloud kernel has no AHCI: a CD drive must
# be IDE or virtio-scsi.)
modules="virtio_pci virtio_blk virtio_scsi virtio_net virtio_balloon ata_piix sd_mod sr_mod button evdev nls_cp437 nls_ascii vfat isofs"
echo "$modules" >"$root/etc/modules"
source=$work/kernel/lib/modules/$version
busybox depmod -b "$work/kernel" "$version"
for module in $modules; do
    line=$(grep -E "/$module\.ko[^ ]*:" "$source/modules.dep") || {
        # Built into this kernel?
        grep -q "/$module\.ko" "$source/modules.builtin" || die "$(basename "$kernel") has no module $module"
        continue
    }
    for file in ${line/:/}; do
        mkdir -p "$root/lib/modules/$version/$(dirname "$file")"
        cp -u "$source/$file" "$root/lib/modules/$version/$file"
    done
done
find "$root/lib/modules" -name '*.ko' -exec strip --strip-debug {} +
for file in modules.order modules.builtin; do cp "$source/$file" "$root/lib/modules/$version/"; done
busybox depmod -b "$root" "$version"

(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0 | gzip -9n >"$work/initrd.gz")
cp "$work"/kernel/boot/vmlinuz-* "$work/vmlinuz"
cat >"$work/syslinux.cfg" <<'CFG'
SERIAL 0 115200
DEFAULT luc
PROMPT 0
TIMEOUT 0
LABEL luc
 KERNEL vmlinuz
 INITRD initrd.gz
 APPEND console=ttyS0 panic=-1 quiet
CFG

# A disk with one FAT partition, from which syslinux boots.
mib=$((($(stat -c %s "$work/vmlinuz") + $(stat -c %s "$work/initrd.gz")) / 1048576 + 3))
truncate -s ${mib}M "$work/part"
mkfs.vfat -n LUC-GUEST -h 2048 "$work/part" >/dev/null
mcopy -i "$work/part" "$work/vmlinuz" "$work/initrd.gz" "$work/syslinux.cfg" ::/
syslinux --install "$work/part"
truncate -s $((mib + 1))M "$work/disk.raw"
echo '2048,,6,*' | sfdisk -q "$work/disk.raw"
dd if="$work/part" of="$work/disk.raw" bs=1M seek=1 conv=notrunc,sparse status=none
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$work/disk.raw" bs=440 count=1 conv=notrunc status=none
qemu-img convert -O qcow2 -c "$work/disk.raw" "$work/disk.qcow2"

# By renaming: a running guest may have the old one open.
mv "$work/disk.raw" "$out/luc-guest.raw"
mv "$work/disk.qcow2" "$out/luc-guest.qcow2"
rm -rf "$work"
echo "$stamp" >"$out/stamp"
say "$out/luc-guest.qcow2: $(stat -c %s "$out/luc-guest.qcow2" | awk '{ print int($1 / 1000000) }') MB, Linux $version"
