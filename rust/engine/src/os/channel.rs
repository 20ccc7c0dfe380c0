//! Messages with descriptors over `SOCK_SEQPACKET` Unix sockets (`SCM_RIGHTS`, unix(7)).
//!
//! One call is one message; a message longer than [`MESSAGE_BYTES_MAX`] or carrying more than
//! [`DESCRIPTORS_MAX`] descriptors is refused. Received descriptors are close-on-exec and owned.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The longest control message, in bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The most descriptors that may travel with one message.
const DESCRIPTORS_MAX: usize = 8;

/// Room for one `SCM_RIGHTS` header and its descriptors, aligned as `cmsghdr` asks.
#[repr(C, align(8))]
struct ControlSpace([u8; 128]);

/// Sends one message with its descriptors; never blocks (`WouldBlock` when the queue is full).
pub(crate) fn send(channel: BorrowedFd<'_>, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    if bytes.len() > MESSAGE_BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut space = ControlSpace([0; 128]);
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr() as *mut _,
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let payload = size_of_val(descriptors) as u32;
        // SAFETY: CMSG_* compute offsets only; the space holds DESCRIPTORS_MAX descriptors.
        unsafe {
            message.msg_control = space.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(payload) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload) as _;
            std::ptr::copy_nonoverlapping(
                descriptors.as_ptr().cast::<u8>(),
                libc::CMSG_DATA(header),
                payload as usize,
            );
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: every pointer in `message` outlives the call.
    let sent = unsafe { libc::sendmsg(channel.as_raw_fd(), &message, flags) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Receives one message; `Ok(None)` when the other end is closed, `WouldBlock` when none waits.
pub(crate) fn receive(
    channel: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = ControlSpace([0; 128]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = space.0.as_mut_ptr().cast();
    message.msg_controllen = space.0.len() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer in `message` outlives the call.
    let got = unsafe { libc::recvmsg(channel.as_raw_fd(), &mut message, flags) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptors = take_descriptors(&message);
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message too long",
        ));
    }
    if got == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    Ok(Some((got as usize, descriptors)))
}

fn take_descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: the kernel filled the control buffer; CMSG_NXTHDR stays inside msg_controllen, and
    // every descriptor in an SCM_RIGHTS message is new and ours alone.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    found.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for two descriptors.
        let made =
            unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr()) };
        assert_eq!(made, 0);
        // SAFETY: both are new and owned here.
        unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) }
    }

    #[test]
    fn carries_bytes_and_descriptors() {
        let (near, far) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(
            near.as_fd(),
            b"hello",
            &[file.as_raw_fd(), file.as_raw_fd()],
        )
        .unwrap();
        let mut buffer = [0; 64];
        let (length, descriptors) = receive(far.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..length], b"hello");
        assert_eq!(descriptors.len(), 2);
    }

    #[test]
    fn tells_a_closed_end_from_an_empty_queue() {
        let (near, far) = pair();
        let mut buffer = [0; 8];
        let empty = receive(far.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        drop(near);
        assert!(receive(far.as_fd(), &mut buffer).unwrap().is_none());
    }

    #[test]
    fn refuses_a_message_longer_than_the_buffer() {
        let (near, far) = pair();
        send(near.as_fd(), &[7; 32], &[]).unwrap();
        let mut buffer = [0; 8];
        let refused = receive(far.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
