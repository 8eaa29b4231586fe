# Thin volumes of LVM, as an administrator uses them: alpha and beta have theirs in one pool, gamma has image files, and delta has
# devices of its own (/dev/ubdb to e). $ZUMASTOR is the program.
. "$LAB_SESSIONS/nodes.sh"

# The logical volumes whose names begin so.
volumes() {
    lvs --noheadings -o lv_name -S "lv_name=~^$1" vg | tr -d ' ' | sort | tr '\n' ' '
}

mkdir -p /run/vol /run/snapshot
pvcreate -q -ff -y /dev/ubda
vgcreate -q vg /dev/ubda
lvcreate -q --type thin-pool -L 300M --poolmetadatasize 8M -n pool vg
lvchange -q --errorwhenfull y vg/pool
lvcreate -q -V 64M -T vg/pool -n vol
lvcreate -q -L 8M -n thick vg
mkfs.ext4 -q /dev/vg/vol
mount /dev/vg/vol /run/vol
mkdir /run/vol/dir
head -c 5000000 /dev/urandom >/run/vol/dir/large
seq 1 2000 >/run/vol/small
(cd /run/vol && find . -type f | sort | xargs sha256sum) >/run/lab/hashes

start alpha 7001
start beta 7002
start gamma 7003
start delta 7004
introduce alpha beta
introduce alpha gamma
introduce alpha delta

# What is no thin volume goes another way, and what is one is not overwritten.
z alpha define volume vol vg/thick 2>/run/lab/said && fail "a thick volume was taken for a thin one"
grep -q "ORGDEV SNAPDEV" /run/lab/said || fail "$(cat /run/lab/said)"
z alpha define volume vol vg/vol --initialize --yes 2>/run/lab/said && fail "a thin volume was initialized"
grep -q "leave out .--initialize." /run/lab/said || fail "$(cat /run/lab/said)"
z alpha define volume vol vg/nothing 2>/run/lab/said && fail "a volume that does not exist was taken"
grep -q "there is no logical volume vg/nothing" /run/lab/said || fail "$(cat /run/lab/said)"

# Taken as it is, mounted or not.
z alpha define volume vol vg/vol
umount /run/vol
z alpha define master vol --no-snapmount
mounted=/run/lab/alpha/run/volumes/vol
(cd $mounted && sha256sum --quiet -c /run/lab/hashes) || fail "the files are not what they were"

# Snapshots of a mounted file system, which LVM shows.
z alpha snapshot vol
echo new >$mounted/new
z alpha snapshot vol
echo newer >$mounted/new
same "$(volumes vol)" "vol vol_zuma0 vol_zuma1 " "what lvs shows"
mount_snapshot "/dev/mapper/vol(0)"
(cd /run/snapshot && sha256sum --quiet -c /run/lab/hashes) || fail "snapshot 0 is not what was there"
[ ! -e /run/snapshot/new ] || fail "snapshot 0 has what came later"
umount /run/snapshot
mount_snapshot /dev/vg/vol_zuma1
same "$(cat /run/snapshot/new)" new "snapshot 1"
umount /run/snapshot
z beta define volume stolen vg/vol_zuma1 2>/run/lab/said && fail "a snapshot was taken for a volume"
grep -q "belongs to the volume on vg/vol" /run/lab/said || fail "$(cat /run/lab/said)"
z beta define volume stolen vg/vol 2>/run/lab/said && fail "a volume was taken twice"
grep -q "in use by another process" /run/lab/said || fail "$(cat /run/lab/said)"

# What was in use when the volume was stopped is taken away later, also by a daemon that was started meanwhile: LVM's name of the
# device does not tell whose it is.
exec 4>>$mounted/small
z alpha stop volume vol
grep -q " $mounted " /proc/mounts || fail "what was in use was taken away"
stop alpha KILL
exec 4>&-
start alpha 7001
for _ in $(seq 600); do
    grep -q " $mounted " /proc/mounts || break
    sleep 0.1
done
grep -q " $mounted " /proc/mounts && fail "a stopped volume stays mounted: $(z alpha status vol)"
z alpha start volume vol
until [ -e $mounted/small ]; do sleep 0.1; done

# By another name it is still the same.
lvrename -q vg vol moved
z alpha define volume twice vg/moved 2>/run/lab/said && fail "a volume was taken twice by another name"
grep -q "belongs to volume vol" /run/lab/said || fail "$(cat /run/lab/said)"
lvrename -q vg moved vol

# To a node with thin volumes in the same pool, one with files, and one with devices.
z alpha define target vol beta --name copy
z alpha define target vol gamma
z alpha define target vol delta
z beta define volume copy vg/copy vg/pool
z beta define source copy alpha --name vol
mkdir /run/lab/files
z gamma define volume vol /run/lab/files/vol.img /run/lab/files/vol.snaps
z gamma define source vol alpha
head -c 1000000 /dev/urandom >/dev/ubdb
z delta define volume vold /dev/ubdb /dev/ubdc --initialize --yes
z alpha define target vol delta --name vold
z delta define source vold alpha --name vol
for node in beta gamma delta; do z alpha replicate vol $node --wait; done
wanted=$(digest alpha "/dev/mapper/vol(1)")
same "$wanted" "$(digest beta /dev/vg/copy)" "the copy on beta"
same "$wanted" "$(digest beta "/dev/mapper/copy(1)")" "snapshot 1 on beta"
same "$wanted" "$(digest gamma /run/lab/files/vol.img)" "the copy on gamma"
same "$wanted" "$(digest delta /dev/mapper/vold)" "the copy on delta"
same "$(volumes copy)" "copy copy_zuma1 " "what lvs shows of the copy"

# From files.
head -c 3000000 /dev/urandom >/run/lab/files/doc.img
z gamma define volume doc /run/lab/files/doc.img /run/lab/files/doc.snaps
z gamma define master doc --no-snapmount
z gamma define target doc alpha
z gamma snapshot doc
z alpha define volume doc vg/doc vg/pool
z alpha define source doc gamma
z gamma replicate doc alpha --wait 2>/dev/null && fail "a volume that is not made of extents was received"
z alpha status doc | grep -q "consist of extents of 4.00 MiB" || fail "$(z alpha status doc)"
z gamma resize doc --origin 8M
z gamma snapshot doc
z gamma replicate doc alpha --wait
same "$(digest gamma /run/lab/files/doc.img)" "$(digest alpha /dev/mapper/doc)" "what came from a file"

# From devices: full, then what changed, and what became zeros.
head -c 16000000 /dev/urandom >/dev/ubdd
z delta define volume dev /dev/ubdd /dev/ubde --yes
z delta define master dev --no-snapmount
z delta define target dev alpha --name devcopy
z delta snapshot dev
z alpha define volume devcopy vg/dev vg/pool
z alpha define source devcopy delta --name dev
z delta replicate dev alpha --wait
same "$(digest delta "/dev/mapper/dev(0)")" "$(digest alpha /dev/vg/dev)" "what came from devices"
dd if=/dev/urandom of=/dev/mapper/dev bs=4096 count=1 seek=1000 conv=fsync 2>/dev/null
dd if=/dev/zero of=/dev/mapper/dev bs=4096 count=64 seek=2000 conv=fsync 2>/dev/null
z delta snapshot dev
z delta replicate dev alpha --wait
same "$(digest delta /dev/mapper/dev)" "$(digest alpha /dev/vg/dev)" "what came from devices, later"
same "$(digest delta "/dev/mapper/dev(0)")" "$(digest alpha /dev/vg/dev_zuma0)" "snapshot 0 that came from devices"
z alpha history devcopy | tail -1 | grep -E "replicated from snapshot 0: [0-9.]+ KiB of data" || fail "$(z alpha history devcopy)"
z alpha forget volume devcopy
z delta forget volume dev
lvremove -q -y vg/dev vg/dev_zuma0 vg/dev_zuma1

# A change of 4 KiB moves about as much, though a chunk has 64. Who reads the copy goes on with what it was.
sync
exec 3</dev/mapper/copy
before=$(sha256sum <"/dev/mapper/copy(1)")
dd if=/dev/urandom of=$mounted/dir/large bs=4096 count=1 seek=700 conv=notrunc,fsync 2>/dev/null
z alpha snapshot vol
for node in beta gamma delta; do z alpha replicate vol $node --wait; done
wanted=$(digest alpha "/dev/mapper/vol(2)")
same "$wanted" "$(digest beta /dev/mapper/copy)" "the copy after a small change"
same "$wanted" "$(digest beta /dev/vg/copy)" "the copy by LVM's name"
same "$before" "$(sha256sum <&3)" "what an open reader of the copy sees"
exec 3<&-
same "$wanted" "$(digest gamma /run/lab/files/vol.img)" "the copy on gamma, later"
same "$wanted" "$(digest delta /dev/mapper/vold)" "the copy on delta, later"
z beta history copy | tail -1 | grep -E "replicated from snapshot 1: [0-9.]+ KiB of data" || fail "$(z beta history copy)"

# LVM's tools remove a snapshot, and then the one that the copy on beta would be built upon.
lvremove -q -y vg/vol_zuma0
z alpha status vol | grep -E "^ *0 " && fail "a snapshot that was removed is still shown"
[ ! -e "/dev/mapper/vol(0)" ] || fail "the node of a snapshot that was removed is left"
lvremove -q -y vg/vol_zuma2
# Its number in the pool goes to another, which is not taken for it.
lvcreate -q -V 8M -T vg/pool -n other
head -c 4000000 /dev/urandom >/dev/vg/other
echo after >$mounted/after
z alpha snapshot vol
z alpha replicate vol beta --wait
same "$(digest alpha "/dev/mapper/vol(3)")" "$(digest beta /dev/mapper/copy)" "the copy without a common snapshot on the master"
lvremove -q -y vg/other

# The daemon that receives is killed in the middle, and goes on where it was.
z alpha define target vol beta --name copy --ratelimit 2M
head -c 12000000 /dev/urandom >$mounted/more
z alpha snapshot vol
z alpha replicate vol beta
until [ -e /dev/vg/copy_zumarecv ] && z beta status copy | grep -qE "[1-9][0-9.]* MiB"; do sleep 0.1; done
stop beta KILL
start beta 7002
z alpha define target vol beta --name copy
z alpha replicate vol beta --wait
same "$(digest alpha "/dev/mapper/vol(4)")" "$(digest beta /dev/mapper/copy)" "the copy that was interrupted"
[ ! -e /dev/vg/copy_zumarecv ] || fail "what was received is still there"

# The master's daemon is killed: what is mounted goes on, and is taken up again.
stop alpha KILL
echo alive >$mounted/alive
start alpha 7001
z alpha snapshot vol
mount_snapshot "/dev/mapper/vol(5)"
same "$(cat /run/snapshot/alive)" alive "snapshot 5"
umount /run/snapshot
content=$(sha256sum <"/dev/mapper/vol(5)")
exec 5<"/dev/mapper/vol(5)"
z alpha delete vol 5
[ ! -e "/dev/mapper/vol(5)" ] || fail "the device of a deleted snapshot is still there"
same "$(sha256sum <&5)" "$content" "a deleted snapshot that is open"
exec 5<&-
check_udev

# Back to a snapshot, and larger; also with LVM's own tool.
exec 4>>$mounted/small
z alpha revert vol 1 2>/run/lab/said && fail "a volume that is in use was replaced"
exec 4>&-
z alpha revert vol 1
[ ! -e $mounted/after ] || fail "the volume has what came after snapshot 1"
(cd $mounted && sha256sum --quiet -c /run/lab/hashes) || fail "the volume is not what snapshot 1 was"
z alpha resize vol --origin 70M 2>/run/lab/said && fail "a size between extents was taken"
grep -q "extents of 4.00 MiB" /run/lab/said || fail "$(cat /run/lab/said)"
z alpha resize vol --origin 96M
same "$(blockdev --getsize64 /dev/vg/vol)" $((96 << 20)) "the size"
lvextend -q -L 128M vg/vol
z alpha resize vol --snapshot 400M 2>/run/lab/said && fail "a pool of LVM's was resized"
grep -q "lvextend" /run/lab/said || fail "$(cat /run/lab/said)"
newest=$(z alpha snapshot vol | cut -d' ' -f1)
z alpha replicate vol beta --wait
same "$(blockdev --getsize64 /dev/mapper/copy)" $((128 << 20)) "the size of the copy"
wanted=$(digest alpha "/dev/mapper/vol($newest)")
same "$wanted" "$(digest beta /dev/mapper/copy)" "the larger copy"

# What a volume held before it was made smaller is there again when it is made larger, mapped as ever: it is sent.
lvcreate -q -V 16M -T vg/pool -n old
head -c 16777216 /dev/urandom >/dev/vg/old
lvreduce -q -y -L 8M vg/old
z alpha define volume old vg/old
z alpha define master old --no-snapmount
z alpha define target old gamma
z gamma define volume old /run/lab/files/old.img /run/lab/files/old.snaps
z gamma define source old alpha
z alpha snapshot old
z alpha replicate old gamma --wait
lvextend -q -L 16M vg/old
z alpha snapshot old
z alpha replicate old gamma --wait
same "$(digest alpha "/dev/mapper/old(1)")" "$(digest gamma /run/lab/files/old.img)" "what was made smaller and larger"
z alpha scrub old --all || fail "the snapshots of what was made smaller and larger are not what their digests say"
z alpha forget volume old
z gamma forget volume old
for name in old_zuma0 old_zuma1 old; do lvremove -q -y vg/$name; done

# Where it receives, it shows there what its source has, of which holes are not sent.
lvcreate -q -V 16M -T vg/pool -n less
head -c 16777216 /dev/urandom >/dev/vg/less
lvreduce -q -y -L 8M vg/less
z alpha define volume less vg/less
z alpha define master less --no-snapmount
z alpha define target less gamma
z gamma define volume less /run/lab/files/less.img /run/lab/files/less.snaps
z gamma define source less alpha
z alpha snapshot less
z alpha replicate less gamma --wait
z gamma promote less
z gamma define target less alpha
z alpha define source less gamma --yes
z gamma resize less --origin 16M
dd if=/dev/urandom of=/run/lab/files/less.img bs=4096 count=1 seek=3000 conv=notrunc,fsync 2>/dev/null
z gamma snapshot less
z gamma replicate less alpha --wait
same "$(digest gamma /run/lab/files/less.img)" "$(digest alpha /dev/mapper/less)" "what was made smaller, and received larger"
z alpha history less | tail -1 | grep -E "replicated from snapshot 0: " || fail "$(z alpha history less)"
z alpha scrub less --all || fail "the snapshots of what was received larger are not what their digests say"
z alpha forget volume less
z gamma forget volume less
for name in $(volumes less_) less; do lvremove -q -y "vg/$name"; done

# No device is left when the daemon stops but the volume that was active before; all is back when it starts.
stop alpha TERM
dmsetup ls | grep 'vg-vol_' && fail "snapshots are left active"
[ ! -e /dev/mapper/vol ] || fail "nodes are left"
start alpha 7001
until [ -e $mounted/small ]; do sleep 0.1; done
(cd $mounted && sha256sum --quiet -c /run/lab/hashes) || fail "the volume after a restart"
same "$(digest alpha "/dev/mapper/vol($newest)")" "$wanted" "the snapshot after a restart"
stop alpha TERM

# What the node knew is lost. The volume group knows it.
rm -rf /run/lab/alpha
start alpha 7001
z alpha define volume vol vg/vol 2>&1 | tee /run/lab/said
grep -q "snapshots were there already: 1, 3, 4" /run/lab/said || fail "the snapshots are gone"
same "$(digest alpha "/dev/mapper/vol($newest)")" "$wanted" "the snapshot that was taken up again"

# The volumes stay, active where they were, were made here, or were found so after a kill; and nothing else.
z alpha forget volume vol
z beta forget volume copy
z delta forget volume vold
dmsetup ls | cut -f1 | sort | tr '\n' ' ' >/run/lab/left
same "$(cat /run/lab/left)" "vg-copy vg-doc vg-pool vg-pool-tpool vg-pool_tdata vg-pool_tmeta vg-thick vg-vol " "the devices that are left"
volumes copy | grep -q "copy copy_zuma1 " || fail "the copy is gone: $(volumes copy)"
ls /dev/mapper | grep -v '^vg-' | grep -v control && fail "nodes are left"
check_udev
vgchange -q -an vg
lvchange -q -y -ay vg/pool_tmeta
thin_check -q /dev/vg/pool_tmeta || fail "the metadata of the pool are damaged"
echo "all of the session held"
