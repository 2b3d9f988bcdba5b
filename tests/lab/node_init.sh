#!/bin/bash
# First process of one netns node. Runs in new mount, host-name, process and IPC
# namespaces inside the node's network namespace; builds the node's root file system
# and stays as its init (bash reaps orphans, so that a zombie there is really a leak).
#
#   node_init.sh FLEET_DIR NAME ADDRESS/PREFIX GATEWAY MEMLOCK_KIB|- LOOPBACK_NAME(0|1) WRITABLE(0|1) SIZE
set -eu
fleet=$1 name=$2 address=$3 gateway=$4 memlock=$5 loopback=$6 writable=$7 size=$8

hostname "$name"
ip -batch - <<BATCH
link set lo up
addr add $address dev eth0
link set eth0 up
route add default via $gateway
BATCH

# One tmpfs per node holds all that the node writes; it vanishes with the namespace.
base=$fleet/mnt
mount -t tmpfs -o "mode=755,size=$size" epdlab "$base"
mkdir "$base"/{up,work,root,own}
cp -a "$fleet/skel/." "$base/up/"
mkdir -p "$base"/own/{root,home/admin,home/operator,tmp,var-tmp,run/sshd,opt,srv,mnt,media,usr/local}
chmod 1777 "$base"/own/{tmp,var-tmp}
chmod 700 "$base/own/root"
cp -a "$fleet/skel-root/." "$base/own/root/"
chown 7001:7001 "$base/own/home/admin"; chown 7002:7002 "$base/own/home/operator"
echo "$name" >"$base/up/etc/hostname"
if [ "$loopback" = 1 ]; then
  # Debian's installer writes this line; gloo and NCCL then announce a loopback address.
  sed "s/^[0-9.]*\t$name\$/127.0.1.1\t$name/" "$fleet/skel/etc/hosts" >"$base/up/etc/hosts"
fi
root=$base/root
mount -t overlay -o "lowerdir=/,upperdir=$base/up,workdir=$base/work" overlay "$root"
rm -f "$root/.dockerenv" # a node is no container, even where the tests run in one
# What somebody put on this machine (keys, CUDA, virtual environments) is not the node's.
for extra in opt srv mnt media usr/local; do
  [ ! -d "$root/$extra" ] || mount --bind "$base/own/$extra" "$root/$extra"
done
mount --bind "$base/own/root" "$root/root"
mount --bind "$base/own/home" "$root/home"
mount --bind "$base/own/tmp" "$root/tmp"
mount --bind "$base/own/var-tmp" "$root/var/tmp"
mount --bind "$base/own/run" "$root/run"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755,size=1m epdlab-dev "$root/dev"
cp -a /dev/{null,zero,full,random,urandom,tty} "$root/dev/"
mkdir "$root"/dev/{pts,shm}
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
# Nominal, as on a GPU node with much memory: a tmpfs takes memory only for what is written.
mount -t tmpfs -o mode=1777,size=64g epdlab-shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
[ "$writable" = 1 ] || mount -o remount,bind,ro "$root"

[ "$memlock" = - ] || ulimit -l "$memlock"
# pam_limits takes its defaults from process 1, so the limit must hold for it as well.
exec chroot "$root" /bin/bash -c '
  cd /
  /usr/sbin/sshd -D -e &
  sleep infinity &
  while :; do wait; done
' init
