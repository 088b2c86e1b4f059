//! Somebody without privileges, in a user namespace and two network namespaces of his own.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::namespaces::XFRMD;

/// Cases of this module.
pub(crate) static CASES: &[(&str, fn())] = &[("without_privileges", ordinary_user)];

/// Of the user: two namespaces with an xfrmd each, and packets between them. `$1` is the program.
const SCRIPT: &str = r#"
set -e
sas() {
    for it in "$1 $2 0x100" "$2 $1 0x200"; do
        set -- $it
        ip xfrm state add src $1 dst $2 proto esp spi $3 reqid 1 mode transport replay-window 32 \
            aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128
    done
}
policies() {
    ip xfrm policy add dir out src $1 dst $2 tmpl proto esp reqid 1 mode transport
    ip xfrm policy add dir in src $2 dst $1 tmpl proto esp reqid 1 mode transport
}
A=192.168.77.1 B=192.168.77.2
case "$2" in
a)  sas $A $B; policies $A $B
    for i in $(seq 30); do ping -q -c 1 -W 1 $B > /dev/null && break; done
    ping -q -c 3 -W 10 -s 3000 $B | grep -o '[0-9]* received'
    ip -s xfrm state | grep -c '[1-9](packets)'
    grep -w XfrmInNoPols /proc/net/xfrm_stat
    exit;;
b)  sas $A $B; policies $B $A
    echo ready; read -r _ || true
    exit;;
esac
id -u; cat /proc/self/uid_map
ip link set lo up
mkfifo "$TMPDIR/said" "$TMPDIR/stop"
unshare -n sh -c 'echo up > "$TMPDIR/said"; read -r _ < "$TMPDIR/said";
    "$1" run --packets -- sh "$0" "$1" b < "$TMPDIR/stop" > "$TMPDIR/ready"' "$0" "$1" &
other=$!
exec 9<> "$TMPDIR/stop"
read -r _ < "$TMPDIR/said"
ip link add v0 type veth peer name v1 netns $other
ip link set v0 up; ip addr add $A/24 dev v0
nsenter --net=/proc/$other/ns/net sh -c "ip link set lo up; ip link set v1 up; ip addr add $B/24 dev v1"
echo go > "$TMPDIR/said"
for i in $(seq 3000); do grep -q ready "$TMPDIR/ready" 2> /dev/null && break; sleep 0.01; done
"$1" run --packets -- sh "$0" "$1" a
echo end >&9
wait $other
"#;

fn ordinary_user() {
    const NOBODY: &str = "65534";
    let home = std::env::temp_dir().join(format!("xfrmd-rootless-{}", std::process::id()));
    std::fs::create_dir_all(&home).unwrap();
    std::fs::set_permissions(&home, PermissionsExt::from_mode(0o777)).unwrap();
    // He may not be able to come to where it was built.
    let program = home.join("xfrmd");
    std::fs::copy(XFRMD, &program).unwrap();
    let script = home.join("script");
    std::fs::write(&script, SCRIPT).unwrap();
    // Where anybody may open it, as on an ordinary machine.
    let enter = format!(
        "mount -t tmpfs -o mode=755,dev none /mnt; mknod -m 666 /mnt/tun c 10 200; \
         mount --bind /mnt/tun /dev/net/tun; \
         exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --no-new-privs \
         unshare -Urn sh {} {}",
        script.display(),
        program.display()
    );
    let output = Command::new("timeout")
        .args(["120", "unshare", "-m", "sh", "-ec", &enter])
        .env("TMPDIR", &home)
        .output()
        .unwrap();
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let _ = std::fs::remove_dir_all(&home);
    assert!(output.status.success(), "{said}\n{errors}");
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("0"));
    // The root of a namespace of one.
    let map: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", NOBODY, "1"]);
    assert_eq!(lines.next(), Some("3 received"), "{said}\n{errors}");
    assert_eq!(lines.next(), Some("2"), "both SAs have carried: {said}");
}
