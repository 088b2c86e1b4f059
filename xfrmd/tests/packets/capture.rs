//! `xfrmd capture`: what it shows of packets between two namespaces.

use std::path::PathBuf;

use crate::cases::{A, B, Pair, echo, udp};
use crate::namespaces::Shell;

/// A file of a case, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("xfrmd-capture-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for end in ["", ".said"] {
            let _ = std::fs::remove_file(format!("{}{end}", self.0.display()));
        }
    }
}

/// Starts a capture in the background that ends by itself after `count` packets.
fn start(xfrmd: &mut Shell, file: &Scratch, options: &str) {
    let (program, file) = (env!("CARGO_BIN_EXE_xfrmd"), file.0.display());
    xfrmd.sh(&format!(
        "timeout 30 {program} capture {options} >{file} 2>{file}.said </dev/null &
         for i in $(seq 3000); do
           if grep -q capturing {file}.said; then exit 0; fi
           sleep 0.01
         done
         cat {file}.said; exit 1"
    ));
}

/// Waits until it has ended; what it wrote.
fn end(xfrmd: &mut Shell, file: &Scratch) -> Vec<u8> {
    let said = format!("{}.said", file.0.display());
    xfrmd.sh(&format!(
        "for i in $(seq 3000); do
           if grep -q lost {said}; then exit 0; fi
           sleep 0.01
         done
         cat {said}; exit 1"
    ));
    let said = std::fs::read_to_string(said).unwrap();
    assert!(said.contains(" packets, 0 lost"), "{said}");
    std::fs::read(&file.0).unwrap()
}

/// Interface, length and comment of each packet of a pcapng file.
fn packets(file: &[u8]) -> Vec<(u32, u32, String)> {
    let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
    let mut out = Vec::new();
    let mut at = 0;
    while at < file.len() {
        let len = word(at + 4) as usize;
        if word(at) == 6 {
            let captured = word(at + 20);
            let option = at + 28 + captured.next_multiple_of(4) as usize;
            let half = |at: usize| u16::from_ne_bytes(file[at..at + 2].try_into().unwrap());
            assert_eq!(half(option), 1, "the first option is the comment");
            let comment = &file[option + 4..option + 4 + usize::from(half(option + 2))];
            let comment = String::from_utf8(comment.to_vec()).unwrap();
            out.push((word(at + 8), word(at + 24), comment));
        }
        at += len;
    }
    out
}

pub(crate) fn both_sides() {
    let mut pair = Pair::new();
    pair.transport();
    let (lines, file, inner) = (
        Scratch::new("lines"),
        Scratch::new("file"),
        Scratch::new("inner"),
    );
    start(&mut pair.xa, &lines, "-c 4");
    start(&mut pair.xa, &file, "-c 4 -w -");
    start(
        &mut pair.xa,
        &inner,
        "-c 1 --inner --spi 0x200 --address 192.168.77.0/24",
    );
    echo(&pair.a, &pair.b, &format!("{A}:0"), &format!("{B}:0"), 100);

    let text = String::from_utf8(end(&mut pair.xa, &lines)).unwrap();
    let wanted = [
        (
            format!(" out inner {A} > {B} protocol 17 length 128: #"),
            "0x00000100",
        ),
        (
            format!(" out outer {A} > {B} protocol 50 length "),
            "0x00000100",
        ),
        (
            format!(" in  outer {B} > {A} protocol 50 length "),
            "0x00000200",
        ),
        (
            format!(" in  inner {B} > {A} protocol 17 length 128: #"),
            "0x00000200",
        ),
    ];
    assert_eq!(text.lines().count(), wanted.len(), "{text}");
    for (line, (packet, spi)) in text.lines().zip(wanted) {
        assert!(line.contains(&packet), "{packet}: {text}");
        assert!(line.ends_with(&format!(" ESP spi {spi} seq 1")), "{line}");
    }

    let packets_seen = packets(&end(&mut pair.xa, &file));
    let interfaces: Vec<u32> = packets_seen.iter().map(|packet| packet.0).collect();
    assert_eq!(interfaces, [1, 0, 0, 1]);
    let number = |at: usize| packets_seen[at].2.split(' ').next().unwrap();
    assert_eq!((number(0), number(2)), (number(1), number(3)));
    assert_ne!(number(0), number(2));
    // With the header of the link layer.
    assert_eq!((packets_seen[0].1, packets_seen[3].1), (144, 144));

    let text = String::from_utf8(end(&mut pair.xa, &inner)).unwrap();
    assert!(text.contains(" in  inner "), "{text}");

    let stat = pair.xa.sh(&format!("{} stat", env!("CARGO_BIN_EXE_xfrmd")));
    assert!(stat.contains("carried out 1 packets"), "{stat}");
    assert!(stat.contains("carried in 1 packets"), "{stat}");
}

pub(crate) fn drops() {
    let mut pair = Pair::new();
    pair.transport();
    let file = Scratch::new("drops");
    pair.xb.sh(&format!(
        "ip xfrm state delete src {A} dst {B} proto esp spi 0x100"
    ));
    start(&mut pair.xb, &file, "-c 1");
    let sender = pair.a.inside(|| udp(&format!("{A}:0")));
    sender.send_to(b"nobody gets this", (B, 9)).unwrap();
    let text = String::from_utf8(end(&mut pair.xb, &file)).unwrap();
    let wanted = "ESP spi 0x00000100 seq 1: dropped: no SA has that SPI (XfrmInNoStates)\n";
    assert!(text.ends_with(wanted), "{text}");
    assert!(text.contains(" in  outer "), "{text}");
    pair.xb.counts("XfrmInNoStates", 1);
}
