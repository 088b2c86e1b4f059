//! The process whose system call it is: its memory, its descriptors, its namespace.
//!
//! All of it may end, or become another's, while we look: who asks makes sure afterwards that the
//! call still waits (`Listener::waits`).

use std::fs::File;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use libc::{c_int, iovec};
use nix::sched::{CloneFlags, setns};
use xfrm_proto::control::SOCKET_MARK;

/// Of `kcmp(2)`.
const KCMP_FILE: c_int = 0;
/// Parts of a vector that the host accepts.
pub(super) const MOST_PARTS: usize = libc::UIO_MAXIOV as usize;

/// A thread of the process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Thread(pub(super) u32);

/// What `/proc` says of a process.
pub(super) struct Status {
    /// Its id.
    pub(super) process: u32,
    /// Its effective user.
    pub(super) euid: u32,
}

impl Thread {
    fn path(self, rest: &str) -> String {
        format!("/proc/{}/{rest}", self.0)
    }

    fn pid(self) -> c_int {
        c_int::try_from(self.0).unwrap_or(0)
    }

    /// Who it is.
    pub(super) fn status(self) -> Option<Status> {
        let text = std::fs::read_to_string(self.path("status")).ok()?;
        let words = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_ascii_whitespace())
        };
        Some(Status {
            process: words("Tgid:")?.next()?.parse().ok()?,
            euid: words("Uid:")?.nth(1)?.parse().ok()?,
        })
    }

    /// Its name, for people.
    pub(super) fn name(self) -> String {
        let name = std::fs::read_to_string(self.path("comm"));
        name.as_deref().unwrap_or("?").trim_end().to_owned()
    }

    /// Its network namespace.
    pub(super) fn namespace(self) -> io::Result<File> {
        File::open(self.path("ns/net"))
    }

    /// Whether it has no descriptor of that number.
    pub(super) fn is_free(self, fd: c_int) -> bool {
        std::fs::read_link(self.path(&format!("fd/{fd}"))).is_err()
    }

    /// Whether its descriptor `theirs` is the open file that ours is.
    pub(super) fn has_same_file(self, theirs: c_int, ours: RawFd) -> bool {
        // SAFETY: plain numbers.
        let order = unsafe {
            libc::syscall(
                libc::SYS_kcmp,
                libc::getpid(),
                self.pid(),
                KCMP_FILE,
                ours,
                theirs,
            )
        };
        match order {
            0 => true,
            // It may be forbidden. A socket is one file.
            -1 => {
                let inode = self.socket_inode(theirs);
                inode.is_some() && inode == inode_of(ours)
            }
            _ => false,
        }
    }

    /// The number of the socket that its descriptor `fd` is.
    pub(super) fn socket_inode(self, fd: c_int) -> Option<u64> {
        let link = std::fs::read_link(self.path(&format!("fd/{fd}"))).ok()?;
        let name = link.to_str()?.strip_prefix("socket:[")?;
        name.strip_suffix(']')?.parse().ok()
    }

    /// Fills a buffer from its memory; EFAULT if that is not possible.
    pub(super) fn read(self, address: u64, buffer: &mut [u8]) -> Result<(), c_int> {
        self.gather(&[part(address, buffer.len())?], buffer)
    }

    /// The same for memory in parts.
    pub(super) fn gather(self, parts: &[iovec], buffer: &mut [u8]) -> Result<(), c_int> {
        let local = iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        self.move_all(parts, local, libc::process_vm_readv)
    }

    /// Writes to its memory.
    pub(super) fn write(self, address: u64, bytes: &[u8]) -> Result<(), c_int> {
        self.scatter(&[part(address, bytes.len())?], bytes)
    }

    /// Writes as much as there is into parts of its memory.
    pub(super) fn scatter(self, parts: &[iovec], bytes: &[u8]) -> Result<(), c_int> {
        let local = iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        self.move_all(parts, local, libc::process_vm_writev)
    }

    fn move_all(
        self,
        parts: &[iovec],
        local: iovec,
        transfer: unsafe extern "C" fn(
            libc::pid_t,
            *const iovec,
            libc::c_ulong,
            *const iovec,
            libc::c_ulong,
            libc::c_ulong,
        ) -> libc::ssize_t,
    ) -> Result<(), c_int> {
        if local.iov_len == 0 {
            return Ok(());
        }
        // SAFETY: our part is valid for its length, for writing where it is written; the other ones
        // are in another process, and the host checks them.
        let moved = unsafe {
            let count = parts.len() as libc::c_ulong;
            transfer(self.pid(), &raw const local, 1, parts.as_ptr(), count, 0)
        };
        match usize::try_from(moved) {
            Ok(moved) if moved == local.iov_len => Ok(()),
            _ => Err(libc::EFAULT),
        }
    }

    /// A C structure in its memory.
    pub(super) fn structure<T: Plain>(self, address: u64) -> Result<T, c_int> {
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: the bytes of the value, all zero and so initialized.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>())
        };
        self.read(address, bytes)?;
        // SAFETY: any bytes are a value of a plain type.
        Ok(unsafe { value.assume_init() })
    }

    /// Replaces one.
    pub(super) fn put<T: Plain>(self, address: u64, value: &T) -> Result<(), c_int> {
        self.write(address, bytes_of(value))
    }

    /// A vector of its own parts.
    pub(super) fn vector(self, address: u64, count: u64) -> Result<Vec<iovec>, c_int> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > MOST_PARTS {
            return Err(libc::EMSGSIZE);
        }
        self.array(address, count)
    }

    /// C structures side by side in its memory.
    pub(super) fn array<T: Plain>(self, address: u64, count: usize) -> Result<Vec<T>, c_int> {
        let mut all = Vec::with_capacity(count);
        // SAFETY: zeros are a value of a plain type.
        all.resize_with(count, || unsafe {
            MaybeUninit::<T>::zeroed().assume_init()
        });
        // SAFETY: the bytes of plain values, all initialized.
        let bytes = unsafe {
            let len = size_of_val(&*all);
            std::slice::from_raw_parts_mut(all.as_mut_ptr().cast::<u8>(), len)
        };
        self.read(address, bytes)?;
        Ok(all)
    }

    /// Replaces them.
    pub(super) fn put_array<T: Plain>(self, address: u64, all: &[T]) -> Result<(), c_int> {
        // SAFETY: the bytes of plain values.
        let bytes =
            unsafe { std::slice::from_raw_parts(all.as_ptr().cast::<u8>(), size_of_val(all)) };
        self.write(address, bytes)
    }

    /// Its memory, program and mappings, as files.
    pub(super) fn file(self, name: &str, write: bool) -> io::Result<File> {
        File::options()
            .read(true)
            .write(write)
            .open(self.path(name))
    }
}

/// The bytes of a C structure.
pub(super) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: the bytes of a plain value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

/// The number of a file of ours.
pub(super) fn inode_of(fd: RawFd) -> Option<u64> {
    // SAFETY: all-zero bytes are valid, and valid for writing.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the same.
    let result = unsafe { libc::fstat(fd, &raw mut status) };
    (result == 0).then_some(status.st_ino)
}

/// The beginning of memory in parts.
pub(super) fn beginning(parts: &[iovec], len: usize) -> impl Iterator<Item = iovec> {
    let mut left = len;
    parts.iter().map_while(move |part| {
        let take = part.iov_len.min(left);
        left -= take;
        let cut = iovec {
            iov_len: take,
            ..*part
        };
        (take > 0 || part.iov_len == 0).then_some(cut)
    })
}

/// A part of another process's memory.
pub(super) fn part(address: u64, len: usize) -> Result<iovec, c_int> {
    Ok(iovec {
        iov_base: usize::try_from(address).map_err(|_| libc::EFAULT)? as *mut _,
        iov_len: len,
    })
}

/// C types of which any bytes are a value, without padding that matters.
///
/// # Safety
/// That is so.
pub(super) unsafe trait Plain {}
// SAFETY: numbers, and pointers that are never followed here.
unsafe impl Plain for iovec {}
// SAFETY: the same.
unsafe impl Plain for libc::msghdr {}
// SAFETY: a number.
unsafe impl Plain for u32 {}
// SAFETY: the same.
unsafe impl Plain for u64 {}
// SAFETY: the same.
unsafe impl Plain for i64 {}
// SAFETY: numbers.
unsafe impl Plain for libc::timespec {}
// SAFETY: the same.
unsafe impl Plain for libc::timeval {}
// SAFETY: the same.
unsafe impl Plain for libc::pollfd {}
// SAFETY: the same.
unsafe impl Plain for libc::epoll_event {}

/// A process, which tells when it ends.
pub(super) struct Process(OwnedFd);

impl Process {
    /// Opens it.
    pub(super) fn open(process: u32) -> io::Result<Self> {
        // SAFETY: plain numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
        new_descriptor(fd).map(Self)
    }

    /// A descriptor of ours for the file that is its descriptor `fd`.
    pub(super) fn descriptor(&self, fd: c_int) -> io::Result<OwnedFd> {
        // SAFETY: plain numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), fd, 0) };
        new_descriptor(fd)
    }

    /// Becomes readable when it has ended.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.as_fd()
    }
}

fn new_descriptor(fd: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the descriptor is new and nobody else's.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether it is a socket that stands for a NETLINK_XFRM one.
pub(super) fn is_marked(fd: &OwnedFd) -> bool {
    let mut mark = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(0);
    // SAFETY: a number and its length, valid for writing.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw mut mark).cast(),
            &raw mut len,
        )
    };
    result == 0 && mark == SOCKET_MARK
}

/// Does `work` in the network namespace of a thread.
pub(super) fn in_namespace<T>(
    home: &File,
    thread: Thread,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let there = thread.namespace()?;
    let same = |a: &File, b: &File| -> io::Result<bool> {
        let (a, b) = (a.metadata()?, b.metadata()?);
        Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
    };
    if same(home, &there)? {
        return work();
    }
    setns(&there, CloneFlags::CLONE_NEWNET)?;
    let result = work();
    setns(home, CloneFlags::CLONE_NEWNET)?;
    result
}
