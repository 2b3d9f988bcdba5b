#!/bin/bash
# Build the root disk of the lab's virtual machines: Debian with its own kernel, initramfs and GRUB
# menu, the RDMA user space, sshd, chrony and QEMU's guest agent.
#
#   build_image.sh FOLDER     needs root; packages come from this machine's own apt sources
#
# Leaves in FOLDER: root.raw (ext4, sparse, no partition table), boot.lkrn (GRUB as a kernel that
# "qemu -kernel" starts; it reads menu, kernel and initramfs from the disk, so that a changed
# initramfs, command line or kernel counts at the next reboot).
set -euo pipefail
out=$(cd "$1" && pwd)
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
work=$(mktemp -d "$out/build.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
chmod 755 "$work"
root=$work/root

rdma=(rdma-core ibverbs-providers ibverbs-utils rdmacm-utils perftest infiniband-diags
      libibverbs1 librdmacm1 libibumad3 libibmad5 libibnetdisc5 libnl-3-200 libnl-route-3-200
      python3-pyverbs)
packages=(linux-image-amd64 initramfs-tools zstd grub-pc-bin grub2-common qemu-guest-agent
          systemd-sysv libpam-systemd dbus udev kmod procps iproute2 iputils-ping ethtool iptables
          nftables openssh-server sudo python3 python3-apt pciutils numactl less netbase chrony "${rdma[@]}")
# Kept in the guest as an apt source of its own, so that a package can be removed and installed offline.
offline=("${rdma[@]}" chrony hello tree)

sources=$(apt-get indextargets --format '$(SITE)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)' 'Created-By: Packages' |
  awk -F'|' -v s="$suite" '$4=="Debian" && ($2==s || index($2, s"-")==1) {print "deb", $1, $2, $3}' | sort -u)
[ -n "$sources" ] || { echo "no Debian apt source for $suite on this machine: run apt-get update" >&2; exit 1; }
options=()
for key in Acquire::http::Proxy Acquire::https::Proxy Acquire::https::CaInfo; do
  value=$(apt-config dump --format '%v%n' "$key"); [ -z "$value" ] || options+=(--aptopt="$key \"$value\"")
done
for path in man locale info; do options+=(--dpkgopt="path-exclude=/usr/share/$path/*"); done
options+=(--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright')
# Half of the kernel package is drivers that no virtual machine has.
for path in sound drivers/gpu drivers/media drivers/staging drivers/iio drivers/net/wireless drivers/usb \
            drivers/input drivers/hid drivers/scsi drivers/isdn drivers/bluetooth drivers/platform; do
  options+=(--dpkgopt="path-exclude=/lib/modules/*/kernel/$path/*")
done

# The initramfs gets the modules that reach the disk, not all that there are: it is read by the BIOS.
cat >"$work/early" <<'HOOK'
set -eu
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
printf 'MODULES=list\nCOMPRESSLEVEL=1\n' >"$1/etc/initramfs-tools/conf.d/lab"
printf '%s\n' virtio_pci virtio_blk ext4 crc32c_generic >"$1/usr/share/initramfs-tools/modules.d/lab"
HOOK
IFS=,
TMPDIR=$work mmdebstrap --quiet --mode=root --variant=minbase --format=directory "${options[@]}" \
  --skip=cleanup/apt/cache --essential-hook="sh $work/early \"\$1\"" \
  --include="${packages[*]}" "$suite" "$root" - <<<"$sources"
unset IFS

repo=$root/srv/repo; mkdir -p "$repo"
for name in "${offline[@]}"; do mv "$root"/var/cache/apt/archives/"$name"_*.deb "$repo"/ 2>/dev/null || true; done
(cd "$repo" && apt-get download -q hello tree >/dev/null)
(cd "$repo" && apt-ftparchive packages . >Packages && apt-ftparchive release . >Release)
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/srv/repo ./' >"$root/etc/apt/sources.list"

printf '127.0.0.1\tlocalhost\n::1\tlocalhost\n' >"$root/etc/hosts"
for i in 1 2 3 4 5 6 7 8; do printf '10.78.0.%d\tvm%d\n' $((10 + i)) "$i" >>"$root/etc/hosts"; done
echo 'LABEL=root / ext4 rw,noatime 0 1' >"$root/etc/fstab"
: >"$root/etc/resolv.conf"  # no name server: a lookup that /etc/hosts does not answer ends at once
echo rdma_rxe >"$root/etc/modules-load.d/soft-roce.conf"
cat >"$root/etc/systemd/system/soft-roce.service" <<'UNIT'
[Unit]
Description=Soft-RoCE device rxe0 on eth1
After=sys-subsystem-net-devices-eth1.device systemd-modules-load.service
Wants=sys-subsystem-net-devices-eth1.device
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'rdma link show rxe0/1 >/dev/null 2>&1 || rdma link add rxe0 type rxe netdev eth1'
[Install]
WantedBy=multi-user.target
UNIT
printf '%s\n' 'GRUB_DEFAULT=0' 'GRUB_TIMEOUT=0' 'GRUB_TERMINAL=console' 'GRUB_DISABLE_OS_PROBER=true' \
  'GRUB_DISABLE_LINUX_UUID=true' 'GRUB_CMDLINE_LINUX_DEFAULT=""' \
  'GRUB_CMDLINE_LINUX="console=ttyS0 loglevel=5 mitigations=off audit=0 nokaslr net.ifnames=0 rcupdate.rcu_expedited=1"' \
  >"$root/etc/default/grub"
printf 'server 10.78.0.1 iburst minpoll 0 maxpoll 6\ndriftfile /var/lib/chrony/chrony.drift\nrtcsync\n' >"$root/etc/chrony/chrony.conf"
chroot "$root" /bin/sh -eu <<'CH'
useradd -m -s /bin/bash tester
echo 'tester ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/tester; chmod 440 /etc/sudoers.d/tester
systemctl -q enable systemd-networkd ssh soft-roce
systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
  getty@tty1.service systemd-pstore.service e2scrub_reap.service systemd-networkd-wait-online.service
rm -f /etc/ssh/ssh_host_*
printf 'UseDNS no\nHostKey /etc/ssh/ssh_host_ed25519_key\n' >/etc/ssh/sshd_config.d/lab.conf
mkdir -p /boot/grub
kernel=$(basename /boot/vmlinuz-*)
echo "linux /boot/$kernel root=/dev/vda ro console=ttyS0 loglevel=5 mitigations=off audit=0 nokaslr net.ifnames=0 rcupdate.rcu_expedited=1" >/boot/grub/grub.cfg
echo "initrd /boot/initrd.img-${kernel#vmlinuz-}" >>/boot/grub/grub.cfg
echo boot >>/boot/grub/grub.cfg
grub-mkimage -O i386-pc -o /tmp/core.img -p '(hd0)/boot/grub' biosdisk ext2 normal linux configfile search \
  search_label search_fs_uuid echo test part_msdos part_gpt gzio loadenv serial terminal all_video minicmd
cat /usr/lib/grub/i386-pc/lnxboot.img /tmp/core.img >/tmp/boot.lkrn
CH
mv "$root/tmp/boot.lkrn" "$out/boot.lkrn"; rm -f "$root/tmp/core.img"
for home in root home/tester; do
  install -d -m700 "$root/$home/.ssh"
  install -m600 "$out/id_ed25519.pub" "$root/$home/.ssh/authorized_keys"
done
chroot "$root" chown -R tester: /home/tester/.ssh
mke2fs -q -F -t ext4 -O ^has_journal -E lazy_itable_init=1,nodiscard -L root -d "$root" "$out/root.raw" 4096M
du -sm "$root" | cut -f1 | sed 's/$/ MiB of files/'
