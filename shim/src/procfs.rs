//! `/proc/net/xfrm_stat` and `/proc/sys/net/core/xfrm_*` of the calling
//! thread's namespace, from the daemon.
//!
//! Reading gives a file with the content as it is now. Writing gives a socket
//! whose other end the daemon holds: what is written takes effect before any
//! later request, also when the write comes from inside libc (stdio) or from
//! another program after exec. A `write` that passes through us reports the
//! daemon's verdict at once, as the kernel does.

use core::ffi::{CStr, c_char, c_int};

use libc::iovec;
use xfrm_proto::control::{Answer, File, Request};

use crate::control::{self, Cargo, Received};
use crate::netlink;
use crate::sys;
use crate::table;

/// More than `xfrm_stat` of any release.
const LARGEST_FILE: usize = 4096;

/// The file of that path, if it is the daemon's.
///
/// # Safety
/// `path` is NULL or a C string.
#[inline]
pub(crate) unsafe fn file(path: *const c_char) -> Option<File> {
    if path.is_null() {
        return None;
    }
    // SAFETY: a C string; the first byte that differs ends the look.
    unsafe {
        for (index, &byte) in b"/proc/".iter().enumerate() {
            if path.add(index).read() as u8 != byte {
                return None;
            }
        }
        File::of_path(CStr::from_ptr(path).to_bytes())
    }
}

fn fail(errno: c_int) -> c_int {
    sys::set_errno(errno);
    -1
}

/// Asks about the calling thread's namespace: `request` makes the request from its cookie.
fn ask(
    request: impl Fn(u64) -> Request,
    cargo: Cargo<'_>,
    buffer: &mut [u8],
) -> Result<(Answer, Received), c_int> {
    let here = sys::socket(
        libc::AF_NETLINK,
        libc::SOCK_RAW | libc::SOCK_CLOEXEC,
        netlink::NETLINK_USERSOCK,
    )?;
    let netns = sys::option::<u64>(here, libc::SOL_SOCKET, netlink::SO_NETNS_COOKIE);
    let result = netns.ok_or(libc::ENOENT).and_then(|netns| {
        let request = request(netns);
        let first = control::exchange(&request, cargo, buffer)?;
        if !first.0.unknown_netns {
            return Ok(first);
        }
        netlink::introduce(netns, here)?;
        control::exchange(&request, cargo, buffer)
    });
    sys::close(here);
    let (answer, received) = result?;
    if answer.errno != 0 {
        return Err(answer.errno as c_int);
    }
    Ok((answer, received))
}

/// `open`.
pub(crate) fn open(file: File, flags: c_int) -> c_int {
    let result = if flags & libc::O_ACCMODE == libc::O_RDONLY {
        open_to_read(file, flags)
    } else {
        open_to_write(file, flags)
    };
    match result {
        Ok(fd) => fd,
        // Without the daemon there is no XFRM, and then there are no such files.
        Err(libc::ECONNREFUSED) => fail(libc::ENOENT),
        Err(errno) => fail(errno),
    }
}

fn open_to_read(file: File, flags: c_int) -> Result<c_int, c_int> {
    let mut content = [0_u8; LARGEST_FILE];
    let (_, received) = ask(
        |netns| Request::Read { netns, file },
        Cargo::default(),
        &mut content,
    )?;
    let cloexec = if flags & libc::O_CLOEXEC != 0 {
        libc::MFD_CLOEXEC
    } else {
        0
    };
    let fd = sys::memfd(c"xfrm", cloexec)?;
    table::forget(fd);
    let filled = sys::write(fd, content.get(..received.len).unwrap_or_default());
    if let Err(errno) = filled {
        sys::close(fd);
        return Err(errno);
    }
    sys::rewind(fd);
    Ok(fd)
}

fn open_to_write(file: File, flags: c_int) -> Result<c_int, c_int> {
    let mut nothing = [0_u8; 1];
    let (_, received) = ask(
        |netns| Request::OpenWrite { netns, file },
        Cargo::default(),
        &mut nothing,
    )?;
    // It came closed on exec; an open without O_CLOEXEC gets a copy that is not.
    let given = received.fd.ok_or(libc::ENOENT)?;
    let low = sys::call!(
        libc::SYS_fcntl,
        given,
        if flags & libc::O_CLOEXEC != 0 {
            libc::F_DUPFD_CLOEXEC
        } else {
            libc::F_DUPFD
        },
        0
    );
    sys::close(given);
    let fd = low? as c_int;
    table::set_file(fd, file);
    Ok(fd)
}

/// `write` to an open sysctl.
pub(crate) fn write(file: File, parts: &[iovec]) -> Result<usize, c_int> {
    let cargo = Cargo { parts, fds: &[] };
    ask(|netns| Request::Write { netns, file }, cargo, &mut [])?;
    Ok(parts.iter().map(|part| part.iov_len).sum())
}

/// `fopen`.
///
/// # Safety
/// `mode` is a C string.
pub(crate) unsafe fn open_stream(file: File, mode: *const c_char) -> *mut libc::FILE {
    // SAFETY: the caller's C string.
    let text = unsafe { CStr::from_ptr(mode) }.to_bytes();
    let mut flags = match (text.first(), text.contains(&b'+')) {
        (Some(b'r'), false) => libc::O_RDONLY,
        (_, false) => libc::O_WRONLY,
        (_, true) => libc::O_RDWR,
    };
    if text.contains(&b'e') {
        flags |= libc::O_CLOEXEC;
    }
    let fd = open(file, flags);
    if fd < 0 {
        return core::ptr::null_mut();
    }
    // SAFETY: a descriptor of our own and the caller's mode.
    let stream = unsafe { libc::fdopen(fd, mode) };
    if stream.is_null() {
        sys::close(fd);
    }
    stream
}

fn permissions(file: File) -> u32 {
    match file {
        File::Stat => 0o444,
        File::AeventEtime | File::AeventRseqth | File::LarvalDrop | File::AcqExpires => 0o644,
    }
}

/// `access`.
pub(crate) fn access(file: File, mode: c_int) -> c_int {
    let refused = mode & libc::X_OK != 0
        || (mode & libc::W_OK != 0 && (file == File::Stat || sys::effective_uid() != 0));
    if refused { fail(libc::EACCES) } else { 0 }
}

/// What `stat` says of it.
pub(crate) fn status(file: File) -> libc::stat {
    // SAFETY: all-zero bytes are a valid stat.
    let mut status: libc::stat = unsafe { core::mem::zeroed() };
    status.st_mode = libc::S_IFREG | permissions(file);
    status.st_nlink = 1;
    status.st_ino = 0x7866_0000 + file as u64;
    status.st_blksize = 1024;
    status
}

/// What `statx` says of it.
pub(crate) fn extended_status(file: File) -> libc::statx {
    // SAFETY: all-zero bytes are a valid statx.
    let mut status: libc::statx = unsafe { core::mem::zeroed() };
    status.stx_mask = libc::STATX_BASIC_STATS;
    status.stx_mode = (libc::S_IFREG | permissions(file)) as u16;
    status.stx_nlink = 1;
    status.stx_ino = 0x7866_0000 + file as u64;
    status.stx_blksize = 1024;
    status
}
