# A thin pool on two disks, a volume with a file system, and a snapshot of it, by hand.
. "$LAB_SESSIONS/lib.sh"

dmsetup create pool --table "0 $(blockdev --getsz /dev/ubdb) thin-pool /dev/ubda /dev/ubdb 128 0 1 error_if_no_space"
dmsetup message pool 0 "create_thin 0"
dmsetup create head --table "0 131072 thin /dev/mapper/pool 0"
mkfs.ext4 -q /dev/mapper/head
mkdir /run/head /run/snapshot
mount /dev/mapper/head /run/head
echo before >/run/head/file

dmsetup suspend head
dmsetup message pool 0 "create_snap 1 0"
dmsetup resume head
echo after >/run/head/file
dmsetup create -r snapshot --table "0 131072 thin /dev/mapper/pool 1"
mount -o ro,noload /dev/mapper/snapshot /run/snapshot
[ "$(cat /run/head/file)" = after ] || fail "the head lost what was written"
[ "$(cat /run/snapshot/file)" = before ] || fail "the snapshot shows what came later"

umount /run/head /run/snapshot
dmsetup remove snapshot
dmsetup remove head
dmsetup remove pool
thin_check /dev/ubda
echo "the metadata is sound"
