//! Socket options that neither std nor mio offer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes ownership of a descriptor this process was given by number at its start.
///
/// # Errors
/// When `raw` is not open.
pub(crate) fn owned(raw: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD touches nothing; it answers EBADF for a number that is not open.
    if unsafe { libc::fcntl(raw, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open, and given to this process alone by its settings.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A new descriptor of the same open file as a number that somebody else owns.
///
/// # Errors
/// When `raw` is not open.
pub(crate) fn cloned(raw: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it touches nothing but the descriptor table; the result is checked.
    let copy = unsafe { libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new, and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Sends FIN: everything written so far is delivered, nothing more will be.
pub(crate) fn shutdown_write(descriptor: BorrowedFd<'_>) {
    // SAFETY: a plain system call; a socket that is gone already answers an error we do not need.
    unsafe { libc::shutdown(descriptor.as_raw_fd(), libc::SHUT_WR) };
}

/// Makes the coming close a reset (`SO_LINGER` 0), so that the peer cannot take what it has got for
/// a complete message.
pub(crate) fn abort_on_close(descriptor: BorrowedFd<'_>) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    set(descriptor, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// `TCP_USER_TIMEOUT` (tcp(7)): how long sent data may stay unacknowledged.
pub(crate) fn user_timeout(descriptor: BorrowedFd<'_>, milliseconds: u32) {
    set(
        descriptor,
        libc::IPPROTO_TCP,
        libc::TCP_USER_TIMEOUT,
        &milliseconds,
    );
}

/// `TCP_QUICKACK` (tcp(7)): acknowledges now what has come; the kernel delays again when it sees fit.
pub(crate) fn acknowledge(descriptor: BorrowedFd<'_>) {
    set(descriptor, libc::IPPROTO_TCP, libc::TCP_QUICKACK, &1_i32);
}

/// Sets an option that is an optimisation: an old kernel or another socket family may refuse it.
fn set<T>(descriptor: BorrowedFd<'_>, level: i32, name: i32, value: &T) {
    // SAFETY: `value` is valid for its own size.
    unsafe {
        libc::setsockopt(
            descriptor.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        );
    }
}

/// How many descriptors this process may have (`RLIMIT_NOFILE`).
pub(crate) fn descriptor_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// A TCP socket of the loopback address that is its own peer.
#[cfg(test)]
pub(crate) fn connected_to_itself() -> io::Result<OwnedFd> {
    let loopback = libc::in_addr {
        s_addr: u32::from(std::net::Ipv4Addr::LOCALHOST).to_be(),
    };
    let mut address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: loopback,
        sin_zero: [0; 8],
    };
    let mut length = size_of_val(&address) as libc::socklen_t;
    let place = std::ptr::from_mut(&mut address).cast::<libc::sockaddr>();
    // SAFETY: `place` and `length` are valid for all three calls; the descriptor is new and ours.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let owned = OwnedFd::from_raw_fd(socket);
        if libc::bind(socket, place, length) != 0
            || libc::getsockname(socket, place, &mut length) != 0
            || libc::connect(socket, place, length) != 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(owned)
    }
}
