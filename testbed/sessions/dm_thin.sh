# Volumes on block devices, as an administrator uses them: three nodes on one guest, two of them with disks of their own
# (/dev/ubda and b, /dev/ubdc and d), one with image files. $ZUMASTOR is the program.
. "$LAB_SESSIONS/nodes.sh"

mkdir -p /run/vol /run/snapshot

# An origin with a file system and files.
mkfs.ext4 -q /dev/ubda
mount /dev/ubda /run/vol
mkdir /run/vol/dir
head -c 5000000 /dev/urandom >/run/vol/dir/large
seq 1 2000 >/run/vol/small
(cd /run/vol && find . -type f | sort | xargs sha256sum) >/run/lab/hashes

start alpha 7001
start beta 7002
start gamma 7003
introduce alpha beta
introduce alpha gamma

# What is in use is refused, and so is a snapshot store that something stands on.
z alpha define volume vol /dev/ubda /dev/ubdb 2>/run/lab/said && fail "a mounted origin was taken"
grep -q "in use" /run/lab/said || fail "$(cat /run/lab/said)"
umount /run/vol
mkfs.ext4 -q /dev/ubdb
z alpha define volume vol /dev/ubda /dev/ubdb 2>/run/lab/said && fail "a file system was overwritten"
grep -q "ext4" /run/lab/said || fail "$(cat /run/lab/said)"
z alpha define volume vol /dev/ubda /dev/ubdb --chunksize 1K 2>/dev/null && fail "a chunk of 1 KiB was taken"

# Adopted as it is.
z alpha define volume vol /dev/ubda /dev/ubdb --yes
z alpha define master vol --no-snapmount
mounted=/run/lab/alpha/run/volumes/vol
(cd $mounted && sha256sum --quiet -c /run/lab/hashes) || fail "the files are not what they were"
mount /dev/ubda /run/snapshot 2>/dev/null && fail "the origin could be mounted beside the volume"

# Snapshots of a mounted file system.
z alpha snapshot vol
echo new >$mounted/new
z alpha snapshot vol
echo newer >$mounted/new
mount_snapshot "/dev/mapper/vol(0)"
(cd /run/snapshot && sha256sum --quiet -c /run/lab/hashes) || fail "snapshot 0 is not what was there"
[ ! -e /run/snapshot/new ] || fail "snapshot 0 has what came later"
umount /run/snapshot
mount_snapshot "/dev/mapper/vol(1)"
same "$(cat /run/snapshot/new)" new "snapshot 1"
umount /run/snapshot

# To a node with devices, and to one with files. The first has no use for what is on its origin.
head -c 1000000 /dev/urandom >/dev/ubdc
z alpha define target vol beta --name copy
z alpha define target vol gamma
dmsetup create store --table "0 98304 linear /dev/ubdd 0"
z beta define volume copy /dev/ubdc /dev/mapper/store --initialize --yes
z beta define source copy alpha --name vol
mkdir /run/lab/files
z gamma define volume vol /run/lab/files/vol.img /run/lab/files/vol.snaps
z gamma define source vol alpha
z alpha replicate vol beta --wait
z alpha replicate vol gamma --wait
wanted=$(digest alpha "/dev/mapper/vol(1)")
same "$wanted" "$(digest beta /dev/mapper/copy)" "the copy on beta"
same "$wanted" "$(digest beta "/dev/mapper/copy(1)")" "snapshot 1 on beta"
same "$wanted" "$(digest gamma /run/lab/files/vol.img)" "the copy on gamma"

# A change of 4 KiB moves about as much, though a chunk has 64. Who reads the copy goes on with what it was.
sync
exec 3</dev/mapper/copy
dd if=/dev/urandom of=$mounted/dir/large bs=4096 count=1 seek=700 conv=notrunc,fsync 2>/dev/null
z alpha snapshot vol
z alpha replicate vol beta --wait
same "$(digest alpha "/dev/mapper/vol(2)")" "$(digest beta /dev/mapper/copy)" "the copy after a small change"
same "$(sha256sum <&3)" "$(sha256sum <"/dev/mapper/copy(1)")" "what an open reader of the copy sees"
exec 3<&-
z alpha replicate vol gamma --wait
same "$(digest alpha "/dev/mapper/vol(2)")" "$(digest gamma /run/lab/files/vol.img)" "the copy on gamma, later"
z beta history copy | tail -1 | grep -E "replicated from snapshot 1: [0-9.]+ KiB of data" || fail "$(z beta history copy)"

# The daemon is killed: what is mounted goes on, and is taken up again.
stop alpha KILL
echo alive >$mounted/alive
start alpha 7001
z alpha snapshot vol
mount_snapshot "/dev/mapper/vol(3)"
same "$(cat /run/snapshot/alive)" alive "snapshot 3"
umount /run/snapshot
content=$(sha256sum <"/dev/mapper/vol(3)")
exec 5<"/dev/mapper/vol(3)"
z alpha delete vol 3
[ ! -e "/dev/mapper/vol(3)" ] || fail "the device of a deleted snapshot is still there"
same "$(sha256sum <&5)" "$content" "a deleted snapshot that is open"
exec 5<&-
dmsetup ls | grep old && fail "the device of a deleted snapshot stays"
check_udev

# Back to a snapshot, and larger.
exec 4>>$mounted/small
z alpha revert vol 0 2>/run/lab/said && fail "a volume that is in use was replaced"
exec 4>&-
z alpha revert vol 0
[ ! -e $mounted/new ] || fail "the volume has what came after snapshot 0"
(cd $mounted && sha256sum --quiet -c /run/lab/hashes) || fail "the volume is not what snapshot 0 was"
z alpha resize vol --origin 96M
same "$(blockdev --getsize64 /dev/mapper/vol)" $((96 << 20)) "the size"
newest=$(z alpha snapshot vol | cut -d' ' -f1)
z alpha replicate vol beta --wait
same "$(blockdev --getsize64 /dev/mapper/copy)" $((96 << 20)) "the size of the copy"
wanted=$(digest alpha "/dev/mapper/vol($newest)")
same "$wanted" "$(digest beta /dev/mapper/copy)" "the larger copy"

# More room for what snapshots keep, and for metadata, in use.
z beta resize copy --snapshot 60M 2>/run/lab/said && fail "more than the device has was taken"
grep -q "make it larger first" /run/lab/said || fail "$(cat /run/lab/said)"
dmsetup reload store --table "0 131072 linear /dev/ubdd 0"
dmsetup suspend store && dmsetup resume store
z beta resize copy --metadata 8M
z beta resize copy --snapshot 64M
dmsetup status copy:pool | grep -q "/2048 [0-9]*/1855 " || fail "the pool did not grow: $(dmsetup status copy:pool)"
z beta resize copy --snapshot 32M 2>/run/lab/said && fail "what is in use was given back"
grep -q "in use" /run/lab/said || fail "$(cat /run/lab/said)"
same "$wanted" "$(digest beta /dev/mapper/copy)" "the copy in a larger pool"

# Nothing is left when the daemon stops; all of it is back when it starts.
stop alpha TERM
dmsetup ls | grep '^vol' && fail "devices are left"
start alpha 7001
until [ -e $mounted/small ]; do sleep 0.1; done
(cd $mounted && sha256sum --quiet -c /run/lab/hashes) || fail "the volume after a restart"
same "$(digest alpha "/dev/mapper/vol($newest)")" "$wanted" "the snapshot after a restart"
stop alpha TERM

# What the node knew is lost. The devices know it.
rm -rf /run/lab/alpha
start alpha 7001
z alpha define volume vol /dev/ubda /dev/ubdb 2>&1 | tee /run/lab/said
grep -q "snapshots were there already: 0, 1, 2" /run/lab/said || fail "the snapshots are gone"
same "$(digest alpha "/dev/mapper/vol($newest)")" "$wanted" "the snapshot that was taken up again"

z alpha forget volume vol
z beta forget volume copy
dmsetup remove store
dmsetup ls | grep -v "No devices" && fail "devices are left"
same "$(ls /dev/mapper)" control "the nodes that are left"
dmsetup create check --table "0 8192 linear /dev/ubdb 8192"
thin_check -q /dev/mapper/check || fail "the metadata of vol are damaged"
dmsetup remove check
dmsetup create check --table "0 8192 linear /dev/ubdd 8192
8192 8192 linear /dev/ubdd 98304"
thin_check -q /dev/mapper/check || fail "the metadata of copy are damaged"
dmsetup remove check
check_udev
echo "all of the session held"
