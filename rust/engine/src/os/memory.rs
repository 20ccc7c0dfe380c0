//! Memory shared between processes, and files mapped for reading.
//!
//! A [`SharedMapping`] hands out atomics and bounded byte copies, never a slice: another process may
//! write at any moment. Offsets are checked on every access; a wrong offset is a bug in the layout
//! and panics rather than touching foreign memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A `memfd` mapped for reading and writing, shared with every process that maps it.
pub(crate) struct SharedMapping {
    descriptor: OwnedFd,
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is reached through atomics and bounded copies only, and lives as long as the
// value; moving or sharing it between threads adds nothing that other processes do not do already.
unsafe impl Send for SharedMapping {}
// SAFETY: see above.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// Makes an anonymous file of `length` bytes, all zero and sparse, and maps it.
    ///
    /// # Errors
    /// What `memfd_create`, `ftruncate` or `mmap` answer.
    pub(crate) fn create(length: usize) -> io::Result<Self> {
        // SAFETY: the name is a NUL-terminated constant; the result is checked.
        let raw = unsafe { libc::memfd_create(c"meshfast".as_ptr(), libc::MFD_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a new descriptor, owned here alone.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: a plain system call on an owned descriptor.
        if unsafe { libc::ftruncate(raw, length as libc::off_t) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Self::map(descriptor, length)
    }

    /// Maps an existing file whole.
    ///
    /// # Errors
    /// What `fstat`, `dup` or `mmap` answer.
    pub(crate) fn open(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        let length = file_length(descriptor)?;
        Self::map(descriptor.try_clone_to_owned()?, length)
    }

    /// The descriptor, for handing to another process.
    #[must_use]
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.descriptor.as_fd()
    }

    /// The length of the mapping in bytes.
    #[must_use]
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The 32-bit word at `offset` (a multiple of 4).
    #[must_use]
    pub(crate) fn word32(&self, offset: usize) -> &AtomicU32 {
        let place = self.place(offset, 4);
        // SAFETY: in bounds and aligned (checked by `place`); atomics may alias across processes.
        unsafe { AtomicU32::from_ptr(place.cast()) }
    }

    /// The 64-bit word at `offset` (a multiple of 8).
    #[must_use]
    pub(crate) fn word64(&self, offset: usize) -> &AtomicU64 {
        let place = self.place(offset, 8);
        // SAFETY: in bounds and aligned (checked by `place`); atomics may alias across processes.
        unsafe { AtomicU64::from_ptr(place.cast()) }
    }

    /// Copies `bytes` to `offset`. The reader learns of them through an atomic written later.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: in bounds; source and destination cannot overlap, one is private memory.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.base.as_ptr().add(offset),
                bytes.len(),
            );
        }
    }

    /// Copies `length` bytes at `offset` to the end of `out`.
    pub(crate) fn read(&self, offset: usize, length: usize, out: &mut Vec<u8>) {
        self.check(offset, length);
        let start = out.len();
        out.resize(start + length, 0);
        // SAFETY: in bounds on both sides; private and shared memory cannot overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset),
                out.as_mut_ptr().add(start),
                length,
            );
        }
    }

    fn map(descriptor: OwnedFd, length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let base = map(descriptor.as_raw_fd(), length, protection)?;
        Ok(Self {
            descriptor,
            base,
            length,
        })
    }

    fn place(&self, offset: usize, width: usize) -> *mut u8 {
        assert!(
            offset.is_multiple_of(width),
            "the layout keeps its words aligned"
        );
        self.check(offset, width);
        // SAFETY: in bounds.
        unsafe { self.base.as_ptr().add(offset) }
    }

    fn check(&self, offset: usize, length: usize) {
        let end = offset
            .checked_add(length)
            .expect("offsets of the layout are small");
        assert!(end <= self.length, "the layout lies inside the mapping");
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// Reads a sealed file whole through a private mapping and hands its bytes to `read`.
///
/// # Errors
/// What `fstat` or `mmap` answer.
pub(crate) fn map_private<T>(
    descriptor: BorrowedFd<'_>,
    read: impl FnOnce(&[u8]) -> T,
) -> io::Result<T> {
    let length = file_length(descriptor)?;
    if length == 0 {
        return Ok(read(&[]));
    }
    let base = map(descriptor.as_raw_fd(), length, libc::PROT_READ)?;
    // SAFETY: the file is sealed against writing and shrinking by whoever published it, so the bytes
    // neither change nor vanish while the slice lives; it does not outlive the mapping.
    let answer = read(unsafe { std::slice::from_raw_parts(base.as_ptr(), length) });
    // SAFETY: mapped just above with this length.
    unsafe { libc::munmap(base.as_ptr().cast(), length) };
    Ok(answer)
}

fn map(descriptor: i32, length: usize, protection: i32) -> io::Result<NonNull<u8>> {
    // SAFETY: a fresh mapping chosen by the kernel; the result is checked.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            libc::MAP_SHARED,
            descriptor,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(base.cast()).expect("mmap does not answer null"))
}

fn file_length(descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    // SAFETY: all-zero is a valid stat, filled by the call.
    let mut facts: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a valid pointer.
    if unsafe { libc::fstat(descriptor.as_raw_fd(), &mut facts) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(facts.st_size as usize)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn two_mappings_of_one_file_see_each_other() {
        let first = SharedMapping::create(4096).unwrap();
        let second = SharedMapping::open(first.descriptor()).unwrap();
        first.word64(8).store(42, Ordering::Release);
        assert_eq!(second.word64(8).load(Ordering::Acquire), 42);
        second.write(100, b"bytes");
        let mut seen = Vec::new();
        first.read(100, 5, &mut seen);
        assert_eq!(seen, b"bytes");
    }

    #[test]
    #[should_panic(expected = "inside the mapping")]
    fn refuses_an_offset_outside() {
        let _ = SharedMapping::create(64).unwrap().word32(64);
    }
}
