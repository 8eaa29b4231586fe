# Runs as process 1 of a guest. Before it stand the variables that say what this guest is.
#
# The host's root file system is the guest's, below a layer in memory: what is written stays in the guest, and is gone with it.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb

end() {
    sync
    echo "$LAB_VERDICT $1"
    poweroff -f
}

if [ "$1" != inside ]; then
    mount -t tmpfs tmpfs /run
    mkdir /run/upper /run/work /run/root
    mount -t proc proc /proc
    insmod "$LAB_MODULES/$(uname -r)/kernel/fs/overlayfs/overlay.ko" || end 120
    mount -t overlay overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work /run/root || end 120
    cd /run/root || end 120
    mount --move /dev dev && mount -t proc proc proc && mount -t sysfs sysfs sys && mount -t tmpfs tmpfs run || end 120
    pivot_root . mnt || end 120
    exec chroot . /bin/sh "$0" inside
fi

umount -l /mnt
# What a scenario writes lies in /run/lab: everywhere else something of the host may be in its way.
mkdir -p /run/lab /dev/shm /dev/pts /lib/modules "$LAB_SHARED"
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount --bind "$LAB_MODULES" /lib/modules || end 121
mount -t hostfs -o "$LAB_SHARED" none "$LAB_SHARED" || end 121
[ -z "$LAB_LOAD" ] || modprobe -a $LAB_LOAD || end 122
ip link set lo up
hostname "$LAB_GUEST"
printf '127.0.0.1 localhost %s\n%s\n' "$LAB_GUEST" "$LAB_HOSTS" >/etc/hosts
if [ -n "$LAB_ADDRESS" ]; then
    ip address add "$LAB_ADDRESS" dev vec0 && ip link set vec0 up || end 123
fi
if [ -n "$LAB_UDEV" ]; then
    # What is there already is made known, as at the start of a machine; of all subsystems would take long.
    /lib/systemd/systemd-udevd --daemon && udevadm trigger --action=add --subsystem-match=block && udevadm settle || end 124
    with_udev=1
else
    # Who makes devices makes their nodes too.
    export DM_DISABLE_UDEV=1
    with_udev=0
fi
[ ! -d /etc/lvm ] || cat >/etc/lvm/lvmlocal.conf <<END
devices { use_devicesfile=0 filter=["a|^/dev/ubd|", "r|.*|"] }
activation { udev_sync=$with_udev udev_rules=$with_udev monitoring=0 }
backup { backup=0 archive=0 }
END
/bin/sh "$LAB_JOB" </dev/null
end $?
