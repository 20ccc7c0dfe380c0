//! Listening sockets shared by all workers, in mio's own epoll set.
//!
//! mio registers edge-triggered and knows no `EPOLLEXCLUSIVE` (epoll_ctl(2), Linux 4.5). A shared
//! listening socket needs both otherwise: level-triggered, so that a worker which accepts only some
//! of a burst is told again, and exclusive, so that one connection wakes one worker, not all.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Adds a listening socket to the epoll set behind `poll`, exclusively and level-triggered.
pub(crate) fn add_shared(
    poll: &mio::Poll,
    listener: BorrowedFd<'_>,
    token: mio::Token,
) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: (libc::EPOLLIN | libc::EPOLLEXCLUSIVE) as u32,
        u64: token.0 as u64,
    };
    control(poll, libc::EPOLL_CTL_ADD, listener, &mut event)
}

/// Takes a listening socket out of the set again.
pub(crate) fn remove(poll: &mio::Poll, listener: BorrowedFd<'_>) -> io::Result<()> {
    let mut ignored = libc::epoll_event { events: 0, u64: 0 };
    control(poll, libc::EPOLL_CTL_DEL, listener, &mut ignored)
}

fn control(
    poll: &mio::Poll,
    operation: i32,
    listener: BorrowedFd<'_>,
    event: &mut libc::epoll_event,
) -> io::Result<()> {
    // SAFETY: both descriptors are open for the call and `event` is a valid epoll_event.
    let done = unsafe { libc::epoll_ctl(poll.as_raw_fd(), operation, listener.as_raw_fd(), event) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
