//! One connection of either side: its socket, its two byte queues, reading and flushing.
//!
//! What both kinds of session share. A session knows nothing of HTTP; the exchange moves payload from
//! one session's `input` to the other's `output`. Handlers only append to `output`; the loop flushes
//! every dirty session once at the end of a turn. Only large payload is sent as it comes, while it is
//! in the cache (`buffer::SEND_AT_ONCE`).

use std::io::{self, Write as _};

use crate::buffer::{Blocks, Input, Output};
use crate::stream::{Io, Peer, Stream};
use crate::tls::Tls;

/// See the module's text.
pub(crate) struct Session {
    pub(crate) stream: Stream,
    pub(crate) tls: Option<Box<Tls>>,
    pub(crate) io: Io,
    /// Our own address, asked for once: three `getsockname` a request were 0.7 us. An upstream's is
    /// known as soon as its connect has begun (ip(7)).
    pub(crate) local: Peer,
    pub(crate) input: Input,
    pub(crate) output: Output,
    /// Send FIN as soon as `output` is empty.
    pub(crate) finish_writing: bool,
    /// Bytes that a leg has put into `input` and not got credit back for.
    pub(crate) uncredited: u32,
    /// In the list of sessions to flush.
    pub(crate) dirty: bool,
    /// In the queue of sessions to drive.
    pub(crate) queued: bool,
}

/// What a flush came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Everything that was queued is with the kernel.
    All,
    /// The kernel's buffer is full; an event will tell when to go on.
    Blocked,
    /// The connection is gone.
    Broken,
}

impl Session {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            local: stream.local(),
            stream,
            tls: None,
            uncredited: 0,
            io: Io {
                writable: true,
                ..Io::default()
            },
            input: Input::default(),
            output: Output::default(),
            finish_writing: false,
            dirty: false,
            queued: false,
        }
    }

    /// Reads once into `input`, which should not exceed `input_max` by more than one read; `true` when
    /// something came: bytes or the end of the stream.
    pub(crate) fn read(&mut self, blocks: &mut Blocks, input_max: usize) -> bool {
        if !self.io.readable
            || self.io.read_closed
            || self.io.broken
            || self.input.len() >= input_max
        {
            return false;
        }
        if self.tls.is_some() {
            return self.read_records(blocks);
        }
        let room = self.input.room(blocks);
        let asked = room.len();
        match self.stream.read(room) {
            Ok(0) => {
                self.io.readable = false;
                self.io.read_closed = true;
                self.input.settle(blocks);
                true
            }
            Ok(count) => {
                // Edge-triggered: a short read means the kernel's buffer is empty, and whatever comes
                // later brings an event. A FIN that came with these bytes has had its event.
                self.io.readable = count == asked || self.io.hangup;
                self.input.received(count);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.io.readable = false;
                false
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(_) => {
                self.io.readable = false;
                self.io.broken = true;
                self.input.settle(blocks);
                true
            }
        }
    }

    /// Reads once and opens the records; plain bytes come into `input`.
    fn read_records(&mut self, blocks: &mut Blocks) -> bool {
        let mut records = Input::default();
        let room = records.room(blocks);
        let asked = room.len();
        let came = match self.stream.read(room) {
            Ok(count) => {
                self.io.readable = count == asked || (count > 0 && self.io.hangup);
                self.io.read_closed = count == 0;
                records.received(count);
                self.open_records(records.as_slice());
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.io.readable = false;
                false
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(_) => {
                self.io.readable = false;
                self.io.broken = true;
                true
            }
        };
        records.clear();
        records.settle(blocks);
        came
    }

    fn open_records(&mut self, records: &[u8]) {
        let Some(tls) = &mut self.tls else { return };
        if tls.receive(records, &mut self.input).is_err() {
            // The alert that tells the peer why still has to leave; a peer that is gone needs none.
            let _ = tls.write_to(&mut self.stream);
            self.io.broken = true;
        }
    }

    /// Whether anything has not reached the kernel yet, sealed or not.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.output.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Sends what waits in `output`.
    pub(crate) fn flush(&mut self, blocks: &mut Blocks) -> Flushed {
        if self.tls.is_some() {
            return self.flush_records(blocks);
        }
        while !self.output.is_empty() {
            if self.io.broken || self.io.write_closed {
                return Flushed::Broken;
            }
            if !self.io.writable {
                return Flushed::Blocked;
            }
            match self.stream.write(self.output.as_slice()) {
                Ok(count) => {
                    self.io.writable = count == self.output.len();
                    self.output.consume(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.io.writable = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // What the peer sent before may still be read; it can be sent nothing more.
                    self.io.write_closed = true;
                }
            }
        }
        self.output.settle(blocks);
        if self.finish_writing && !self.io.write_closed {
            self.io.write_closed = true;
            self.stream.shutdown_write();
        }
        Flushed::All
    }

    /// Seals what waits in `output` and sends the records.
    fn flush_records(&mut self, blocks: &mut Blocks) -> Flushed {
        loop {
            let Some(tls) = &mut self.tls else {
                return Flushed::All;
            };
            let sealed = tls.seal(self.output.as_slice());
            self.output.consume(sealed);
            while tls.wants_write() {
                if self.io.broken || self.io.write_closed {
                    return Flushed::Broken;
                }
                if !self.io.writable {
                    return Flushed::Blocked;
                }
                match tls.write_to(&mut self.stream) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.io.writable = false;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => self.io.write_closed = true,
                }
            }
            if !self.output.is_empty() {
                if sealed == 0 {
                    return Flushed::Blocked;
                }
                continue;
            }
            self.output.settle(blocks);
            if self.finish_writing && !self.io.write_closed {
                // The peer learns that this is the end and not a cut (RFC 8446 6.1).
                tls.close_notify();
                if tls.wants_write() {
                    continue;
                }
                self.io.write_closed = true;
                self.stream.shutdown_write();
            }
            return Flushed::All;
        }
    }
}
