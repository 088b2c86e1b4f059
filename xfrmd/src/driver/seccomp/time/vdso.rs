//! The vDSO of a program: clocks that are read without a system call, which no filter sees.
//!
//! In the program's own memory its functions are replaced by the calls that they spare, as a debugger sets a
//! breakpoint: the page is copied, and no other process notices. Children that are forked have the copy. That
//! it is there tells a program that has the virtual clock.

use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;

use super::super::target::Thread;
use crate::driver::command::SHIM_NAME;

/// Functions of the vDSO, and the calls that take their places.
#[cfg(target_arch = "x86_64")]
const FUNCTIONS: [(&std::ffi::CStr, libc::c_long); 3] = [
    (c"__vdso_clock_gettime", libc::SYS_clock_gettime),
    (c"__vdso_gettimeofday", libc::SYS_gettimeofday),
    (c"__vdso_time", libc::SYS_time),
];

/// What is put where: bytes from the start of the vDSO.
pub(super) struct Patch(Vec<(u64, Vec<u8>)>);

/// What a program has mapped.
struct Mapped {
    vdso: Option<u64>,
    shim: bool,
}

impl Patch {
    /// That of this machine; none where it is not known how.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn new() -> Option<Self> {
        // SAFETY: a plain number; the library is there already, and its name ends in NUL.
        let (base, vdso) = unsafe {
            (
                libc::getauxval(libc::AT_SYSINFO_EHDR),
                libc::dlopen(
                    c"linux-vdso.so.1".as_ptr(),
                    libc::RTLD_NOW | libc::RTLD_NOLOAD,
                ),
            )
        };
        if base == 0 || vdso.is_null() {
            return None;
        }
        let mut all = Vec::new();
        for (name, number) in FUNCTIONS {
            // SAFETY: the handle is valid and the name ends in NUL.
            let address = unsafe { libc::dlsym(vdso, name.as_ptr()) } as u64;
            let number = u32::try_from(number).ok()?.to_le_bytes();
            // mov eax, NUMBER; syscall; ret
            let code = [&[0xb8], &number[..], &[0x0f, 0x05, 0xc3]].concat();
            all.push((address.checked_sub(base)?, code));
        }
        Some(Self(all))
    }

    /// That of this machine: it is not known how.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn new() -> Option<Self> {
        None
    }

    /// Whether it is in the program's memory.
    pub(super) fn is_in(&self, thread: Thread) -> bool {
        let Ok(Mapped {
            vdso: Some(base), ..
        }) = mapped(thread)
        else {
            return false;
        };
        self.0.iter().all(|(offset, code)| {
            let mut there = vec![0; code.len()];
            thread
                .read(base.wrapping_add(*offset), &mut there)
                .is_ok_and(|()| there == *code)
        })
    }

    /// Puts it there, unless the shim is in the program; whether it is there.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn put_into(&self, thread: Thread) -> io::Result<bool> {
        let Mapped { vdso, shim: false } = mapped(thread)? else {
            return Ok(false);
        };
        // Without a vDSO there are only calls.
        let Some(base) = vdso else { return Ok(false) };
        let memory = thread.file("mem", true)?;
        for (offset, code) in &self.0 {
            memory.write_all_at(code, base.wrapping_add(*offset))?;
        }
        Ok(true)
    }
}

fn mapped(thread: Thread) -> io::Result<Mapped> {
    let mut mapped = Mapped {
        vdso: None,
        shim: false,
    };
    let mut text = String::new();
    thread.file("maps", false)?.read_to_string(&mut text)?;
    for line in text.lines() {
        if line.ends_with("[vdso]") {
            let start = line.split('-').next().unwrap_or_default();
            mapped.vdso = u64::from_str_radix(start, 16).ok();
        }
        mapped.shim |= line.ends_with(SHIM_NAME);
    }
    Ok(mapped)
}
