//! How frames are answered.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use xfrm_proto::control::Answer;

/// A longer content would need more room than a connection may have.
const MOST_CONTENT: usize = 64 << 10;

/// How a frame is answered.
pub(super) enum Reply {
    Answer(Answer),
    Content(Vec<u8>),
    Descriptor(OwnedFd),
    /// There is no answer, or it comes later.
    Nothing,
    HangUp,
}

impl Reply {
    pub(super) fn error(errno: i32) -> Self {
        Self::Answer(Answer::error(errno.unsigned_abs()))
    }

    pub(super) fn wants_proof() -> Self {
        Self::Answer(Answer {
            wants_proof: true,
            ..Answer::default()
        })
    }

    /// A content of any length: what would not fit into a frame goes as a file.
    pub(super) fn document(content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        if content.len() <= MOST_CONTENT {
            return Self::Content(content.to_vec());
        }
        let file = memfd_create(c"xfrmd", MFdFlags::MFD_CLOEXEC).and_then(|fd| {
            let file = File::from(fd);
            file.write_all_at(content, 0).map_err(|_| Errno::ENOMEM)?;
            Ok(file.into())
        });
        file.map_or_else(|error| Self::error(error as i32), Self::Descriptor)
    }

    pub(super) fn unknown_netns() -> Self {
        Self::Answer(Answer {
            unknown_netns: true,
            ..Answer::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use xfrm_proto::control::Request;

    use super::*;
    use crate::driver::{client, host};

    #[test]
    fn what_does_not_fit_into_a_frame_goes_as_a_file() {
        let kind = SockType::SeqPacket;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, kind, None, SockFlag::empty()).unwrap();
        for bytes in [1, MOST_CONTENT, MOST_CONTENT + 1, 100 * MOST_CONTENT] {
            let text = "x".repeat(bytes);
            let header = Answer::default().encode();
            match Reply::document(&text) {
                Reply::Content(content) => {
                    host::send_frame(ours.as_fd(), &header, &content, None).unwrap();
                }
                Reply::Descriptor(file) => {
                    host::send_frame(ours.as_fd(), &header, &[0], Some(file.as_fd())).unwrap();
                }
                _ => panic!("an error"),
            }
            let heard = client::ask(&theirs, &Request::Stat, &[]).unwrap();
            assert_eq!(heard, text.as_bytes());
        }
    }
}
