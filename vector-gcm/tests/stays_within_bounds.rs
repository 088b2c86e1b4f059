//! A text beside memory that nobody may touch: whatever is read or written in front of it or behind
//! it ends the test.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "the helpers of tests are tests"
)]

use vector_gcm::{AesGcm, Nonce};

const PAGE: usize = 4096;
/// Longer than two groups of blocks and any rest.
const MOST: usize = 600;

/// A page between two that can be neither read nor written.
struct Fenced(*mut u8);

impl Fenced {
    fn new() -> Self {
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a mapping of its own, wherever the kernel puts it; of that the middle page is opened.
        unsafe {
            let start = libc::mmap(std::ptr::null_mut(), 3 * PAGE, libc::PROT_NONE, kind, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let page = start.cast::<u8>().add(PAGE);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(page.cast(), PAGE, access), 0);
            Self(page)
        }
    }

    fn page(&mut self) -> &mut [u8] {
        // SAFETY: the page is there as long as this is, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.0, PAGE) }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: what `new` has mapped, of which no reference is left.
        unsafe { libc::munmap(self.0.sub(PAGE).cast(), 3 * PAGE) };
    }
}

#[test]
fn texts_between_fences() {
    let mut fenced = Fenced::new();
    let page = fenced.page();
    for key in [&[7_u8; 16][..], &[9; 32]] {
        let Some(gcm) = AesGcm::new(key) else {
            eprintln!("skipped: this processor has no VAES");
            return;
        };
        let nonce = Nonce::of_parts([1, 2, 3, 4], [5; 8]);
        for bytes in 0..=MOST {
            // At the page's very beginning, at its very end, and at places that are not aligned.
            for at in [0, 1 + bytes % 31, PAGE - bytes - 1, PAGE - bytes] {
                page.fill(0xa5);
                let plain: Vec<u8> = (0..bytes).map(|n| (n * 7) as u8).collect();
                page[at..at + bytes].copy_from_slice(&plain);
                let tag = gcm.seal(nonce, [3; 8].into(), &mut page[at..at + bytes]);
                let mut elsewhere = plain.clone();
                assert_eq!(tag, gcm.seal(nonce, [3; 8].into(), &mut elsewhere));
                assert_eq!(page[at..at + bytes], elsewhere, "{bytes} bytes at {at}");
                let body = &mut page[at..at + bytes];
                assert!(gcm.open(nonce, [3; 8].into(), body, &tag));
                assert_eq!(page[at..at + bytes], plain, "{bytes} bytes at {at}");
                let untouched = |rest: &[u8]| rest.iter().all(|byte| *byte == 0xa5);
                assert!(untouched(&page[..at]) && untouched(&page[at + bytes..]));
            }
        }
    }
}
