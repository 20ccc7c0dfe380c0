//! One `meshfast/1` connection: many streams of bytes over one, with credit. Sans-I/O.
//!
//! HTTP/2's frames, stream life and flow control (RFC 9113); of its header blocks only the few that
//! `docs/meshfast-1.md` names for carrying HTTP/1 and TCP: literals without index and without Huffman
//! coding, so that there is no state between blocks. A stream is opened by the dialling side and
//! carries one exchange; what its bytes mean is the engine's.
//!
//! The caller feeds received bytes to [`Connection::receive`] and takes one event at a time; everything
//! to be sent is appended to the `out` it passes. A refusal ends the connection.
//!
//! Invariants:
//! 1. Nothing is sent beyond the peer's credit, nothing is accepted beyond ours.
//! 2. Credit is given back only for bytes the caller says it has consumed.
//! 3. After [`Event::Reset`], or `Ended` with our own end sent, a stream is forgotten; late frames for
//!    it are ignored, their bytes still count against the connection's credit.
//! 4. A stream above the announced limit, or behind our GOAWAY, is refused with REFUSED_STREAM: it
//!    never reached the caller.
//! 5. A peer that makes us work without carrying anything is cut off: `mux/budget.rs`.
//!
//! Tests: `tests/wire/mux.rs` (a pair, every input also byte by byte).

mod block;
mod budget;

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind};
use crate::frame::{
    ErrorCode, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_DEFAULT, Flags, FrameHeader, FrameType,
    PREFACE, STREAM_ID_MAX, read_preface,
};
use budget::Budget;
pub use budget::{LIMITS, Limits};

/// Credit a stream begins with, both ways: what both sides announce as INITIAL_WINDOW_SIZE.
pub const STREAM_WINDOW_BYTES: u32 = 65_536;

/// Credit of the whole connection, given on top of HTTP/2's 65,535 right at the start. Larger than a
/// stream's, so that one reader that does not read cannot stop the others.
pub const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Streams a peer may have open at once.
pub const STREAMS_MAX: usize = 1_024;

/// Streams that may be opened before the peer has said how many it takes: the least that RFC 9113 6.5.2
/// recommends.
pub const PEER_STREAMS_MAX: usize = 100;

/// Consumed bytes are given back when they amount to this much: one frame for 32 KiB.
const CREDIT_BYTES: u32 = STREAM_WINDOW_BYTES / 2;

/// The initial credit of RFC 9113 6.9.2, before any setting or WINDOW_UPDATE.
const RFC_WINDOW_BYTES: u32 = 65_535;

/// A name of two bytes and a value of four (RFC 9113 6.5.1).
const SETTING_BYTES: usize = 6;

const SETTING_ENABLE_PUSH: u16 = 0x2;
const SETTING_MAX_STREAMS: u16 = 0x3;
const SETTING_INITIAL_WINDOW: u16 = 0x4;

/// Header blocks are two or three short literals.
const HEADER_BLOCK_BYTES_MAX: usize = 1_024;

/// What the PING in front of the second GOAWAY says.
const LEAVING: [u8; 8] = *b"leaving\0";

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens streams.
    Client,
    /// Takes them.
    Server,
}

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// One HTTP/1 request and its response, in HTTP/1's own framing.
    Http1,
    /// The bytes of one TCP connection.
    Tcp,
}

/// What has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The peer took the stream (its response headers).
    Accepted(u32),
    /// Bytes of a stream.
    Data(u32, &'a [u8]),
    /// The peer sends nothing more on this stream.
    Ended(u32),
    /// The peer takes no stream above this one any more.
    GoAway(u32),
    /// The peer opened a stream to a port of the workload.
    Opened(u32, u16, Carries),
    /// The stream is over; `RefusedStream` means it never reached the application.
    Reset(u32, ErrorCode),
    /// More may be sent: on this stream, or on all when 0.
    Writable(u32),
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// What the peer lets us send. May be negative after a SETTINGS change (RFC 9113 6.9.2).
    send_credit: i64,
    /// What we let the peer send.
    receive_credit: i64,
    /// Consumed and not yet given back.
    owed: u32,
    local_ended: bool,
    remote_ended: bool,
    headers_sent: bool,
    opened_ms: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    streams: BTreeMap<u32, Stream>,
    next_stream: u32,
    last_peer_stream: u32,
    preface_pending: bool,
    settings_pending: bool,
    send_credit: i64,
    receive_credit: i64,
    owed: u32,
    peer_window: i64,
    peer_streams_max: usize,
    peer_has_left: bool,
    /// We have said that we leave, and wait until the peer has heard it.
    is_leaving: bool,
    we_have_left: bool,
    budget: Budget,
    /// Payload of the DATA frame that is being handed out: stream, bytes left, ends the stream.
    data: Option<(u32, u32, bool)>,
    /// An `Ended` that follows the last bytes.
    ended: Option<u32>,
}

impl Connection {
    /// A new connection; appends what this end says first.
    pub fn new(role: Role, out: &mut Vec<u8>) -> Self {
        if role == Role::Client {
            out.extend_from_slice(PREFACE);
        }
        let settings: [(u16, u32); 3] = [
            (SETTING_ENABLE_PUSH, 0),
            (SETTING_MAX_STREAMS, STREAMS_MAX as u32),
            (SETTING_INITIAL_WINDOW, STREAM_WINDOW_BYTES),
        ];
        let mut payload = Vec::with_capacity(settings.len() * SETTING_BYTES);
        for (name, value) in settings {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        frame(out, FrameType::Settings, Flags::default(), 0, &payload);
        window_update(out, 0, CONNECTION_WINDOW_BYTES);
        Self {
            role,
            streams: BTreeMap::new(),
            next_stream: 1,
            last_peer_stream: 0,
            preface_pending: role == Role::Server,
            settings_pending: true,
            send_credit: i64::from(RFC_WINDOW_BYTES),
            receive_credit: i64::from(RFC_WINDOW_BYTES + CONNECTION_WINDOW_BYTES),
            owed: 0,
            peer_window: i64::from(RFC_WINDOW_BYTES),
            peer_streams_max: PEER_STREAMS_MAX,
            peer_has_left: false,
            is_leaving: false,
            we_have_left: false,
            budget: Budget::new(),
            data: None,
            ended: None,
        }
    }

    /// Time has passed; any clock that does not go back. What comes in between counts as now.
    pub fn at(&mut self, now_ms: u64) {
        self.budget.at(now_ms);
    }

    /// Streams that are not over.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether another stream may be opened from this end.
    #[must_use]
    pub fn may_open(&self) -> bool {
        self.role == Role::Client
            && !self.peer_has_left
            && self.next_stream < STREAM_ID_MAX
            && self.streams.len() < self.peer_streams_max
    }

    /// Opens a stream to a port of the peer's workload; `None` when none may be opened now.
    pub fn open(&mut self, port: u16, carries: Carries, out: &mut Vec<u8>) -> Option<u32> {
        if !self.may_open() {
            return None;
        }
        let stream = self.next_stream;
        self.next_stream += 2;
        self.streams
            .insert(stream, Stream::new(self.peer_window, true, 0));
        self.budget.earn();
        let mut block = Vec::new();
        block::write_opening(&mut block, port, carries);
        frame(out, FrameType::Headers, Flags::END_HEADERS, stream, &block);
        Some(stream)
    }

    /// How many bytes may be sent on a stream now.
    #[must_use]
    pub fn send_room(&self, stream: u32) -> usize {
        let own = self.streams.get(&stream).filter(|it| !it.local_ended);
        own.map_or(0, |it| it.send_credit.min(self.send_credit).max(0) as usize)
    }

    /// Sends bytes on a stream, as many as there is credit for; returns how many.
    pub fn send(&mut self, stream: u32, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let count = self.send_room(stream).min(bytes.len());
        let Some(state) = self.streams.get_mut(&stream) else {
            return 0;
        };
        state.answer_first(stream, out);
        for piece in bytes[..count].chunks(FRAME_PAYLOAD_BYTES_DEFAULT as usize) {
            frame(out, FrameType::Data, Flags::default(), stream, piece);
            self.budget.earn();
        }
        state.send_credit -= count as i64;
        self.send_credit -= count as i64;
        count
    }

    /// Says that nothing more comes on this stream from here.
    pub fn end(&mut self, stream: u32, out: &mut Vec<u8>) {
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        if !state.local_ended {
            state.answer_first(stream, out);
            state.local_ended = true;
            frame(out, FrameType::Data, Flags::END_STREAM, stream, &[]);
        }
        self.forget_if_over(stream);
    }

    /// Takes the stream before there is anything to send (an opened TCP connection).
    pub fn accept(&mut self, stream: u32, out: &mut Vec<u8>) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.answer_first(stream, out);
        }
    }

    /// Ends a stream at once.
    pub fn reset(&mut self, stream: u32, code: ErrorCode, out: &mut Vec<u8>) {
        if self.streams.remove(&stream).is_some() {
            self.budget.closed();
            reset(out, stream, code);
        }
    }

    /// Gives the credit of consumed bytes back, in portions.
    pub fn consumed(&mut self, stream: u32, count: usize, out: &mut Vec<u8>) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.owe_connection(count, out);
        let Some(state) = self.streams.get_mut(&stream).filter(|it| !it.remote_ended) else {
            return;
        };
        state.owed += count;
        if state.owed >= CREDIT_BYTES {
            window_update(out, stream, state.owed);
            state.receive_credit += i64::from(std::mem::take(&mut state.owed));
        }
    }

    /// Says that no further stream will be taken, and takes those that are on their way until the peer
    /// has heard it (RFC 9113 6.8): its answer to a PING tells. Those that are open finish.
    pub fn leave(&mut self, out: &mut Vec<u8>) {
        if !self.is_leaving && !self.we_have_left {
            self.is_leaving = true;
            say_go_away(out, STREAM_ID_MAX, ErrorCode::NoError);
            frame(out, FrameType::Ping, Flags::default(), 0, &LEAVING);
        }
    }

    /// Whether every further stream is refused: the peer has heard that we leave, or need not.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.we_have_left
    }

    /// Takes no further streams, at once; those that are open finish.
    pub fn go_away(&mut self, code: ErrorCode, out: &mut Vec<u8>) {
        self.we_have_left = true;
        say_go_away(out, self.last_peer_stream, code);
    }

    /// Takes the next event out of received bytes: how many were used, and what they said. Call again
    /// with the rest until nothing is used and there is no event.
    ///
    /// # Errors
    /// When the peer breaks the protocol: the connection is over (GOAWAY with [`ErrorCode::of`]).
    pub fn receive<'a>(
        &mut self,
        input: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Event<'a>>), Error> {
        // None when the caller has reset the stream since its last bytes.
        let ended = self.ended.take().and_then(|it| self.end_received(it));
        if ended.is_some() {
            return Ok((0, ended));
        }
        if let Some((stream, left, ends)) = self.data {
            return Ok(self.hand_out(stream, left, ends, input, out));
        }
        if self.preface_pending {
            if !read_preface(input)? {
                return Ok((0, None));
            }
            self.preface_pending = false;
            return Ok((PREFACE.len(), None));
        }
        let Some(header) = FrameHeader::decode(input, FRAME_PAYLOAD_BYTES_DEFAULT)? else {
            return Ok((0, None));
        };
        if self.settings_pending && header.kind != FrameType::Settings {
            return Err(ErrorKind::MuxStream.into());
        }
        if header.kind == FrameType::Data {
            self.begin_data(&header)?;
            let ends = header.length == 0 && header.flags.contains(Flags::END_STREAM);
            return Ok((
                FRAME_HEADER_BYTES,
                ends.then(|| self.end_received(header.stream)).flatten(),
            ));
        }
        let length = FRAME_HEADER_BYTES + header.length as usize;
        let Some(payload) = input.get(FRAME_HEADER_BYTES..length) else {
            return Ok((0, None));
        };
        if header.kind != FrameType::Headers {
            self.budget.spend()?;
        }
        let event = match header.kind {
            FrameType::GoAway => self.take_go_away(payload),
            FrameType::Headers => self.take_headers(&header, payload, out)?,
            FrameType::Ping => {
                self.take_ping(&header, payload, out);
                None
            }
            FrameType::RstStream => self.take_reset(&header, payload)?,
            FrameType::Settings => self.take_settings(&header, payload, out)?,
            FrameType::WindowUpdate => self.take_credit(&header, payload)?,
            FrameType::Continuation | FrameType::PushPromise => {
                return Err(ErrorKind::MuxStream.into());
            }
            FrameType::Data | FrameType::Priority | FrameType::Unknown(_) => None,
        };
        Ok((length, event))
    }

    fn begin_data(&mut self, header: &FrameHeader) -> Result<(), Error> {
        if header.flags.contains(Flags::PADDED) {
            // Peers are meshfast, which never pads.
            return Err(ErrorKind::MuxStream.into());
        }
        let length = i64::from(header.length);
        self.receive_credit -= length;
        if self.receive_credit < 0 {
            return Err(ErrorKind::MuxFlowControl.into());
        }
        if let Some(state) = self.streams.get_mut(&header.stream) {
            if state.remote_ended {
                return Err(ErrorKind::MuxStream.into());
            }
            state.receive_credit -= length;
            if state.receive_credit < 0 {
                return Err(ErrorKind::MuxFlowControl.into());
            }
        } else if self.is_idle(header.stream) {
            return Err(ErrorKind::MuxStream.into());
        }
        let ends = header.flags.contains(Flags::END_STREAM);
        self.budget.data(header.length == 0 && !ends)?;
        self.data = (header.length > 0).then_some((header.stream, header.length, ends));
        Ok(())
    }

    fn hand_out<'a>(
        &mut self,
        stream: u32,
        left: u32,
        ends: bool,
        input: &'a [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Option<Event<'a>>) {
        let count = input.len().min(left as usize);
        let is_last = count == left as usize;
        self.data = (!is_last).then_some((stream, left - count as u32, ends));
        if count == 0 {
            return (0, None);
        }
        if !self.streams.contains_key(&stream) {
            // A stream that is over: nobody will consume these bytes.
            self.owe_connection(count as u32, out);
            return (count, None);
        }
        self.ended = (is_last && ends).then_some(stream);
        (count, Some(Event::Data(stream, &input[..count])))
    }

    fn end_received<'a>(&mut self, stream: u32) -> Option<Event<'a>> {
        self.streams.get_mut(&stream)?.remote_ended = true;
        self.forget_if_over(stream);
        Some(Event::Ended(stream))
    }

    fn take_headers<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, Error> {
        let unpadded = !header.flags.contains(Flags::PADDED.with(Flags::PRIORITY))
            && !header.flags.contains(Flags::PADDED)
            && !header.flags.contains(Flags::PRIORITY);
        if !header.flags.contains(Flags::END_HEADERS)
            || !unpadded
            || payload.len() > HEADER_BLOCK_BYTES_MAX
        {
            return Err(ErrorKind::MuxHeaders.into());
        }
        match self.role {
            Role::Server => self.take_opening(header, payload, out),
            Role::Client => self.take_answer(header, payload),
        }
    }

    fn take_opening<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, Error> {
        let stream = header.stream;
        if stream.is_multiple_of(2) || stream <= self.last_peer_stream {
            return Err(ErrorKind::MuxStream.into());
        }
        let (port, carries) = block::read_opening(payload).ok_or(ErrorKind::MuxHeaders)?;
        if self.we_have_left || self.streams.len() >= STREAMS_MAX {
            self.last_peer_stream = stream;
            self.budget.spend()?;
            reset(out, stream, ErrorCode::RefusedStream);
            return Ok(None);
        }
        self.last_peer_stream = stream;
        self.ended = header.flags.contains(Flags::END_STREAM).then_some(stream);
        self.streams.insert(
            stream,
            Stream::new(self.peer_window, false, self.budget.now_ms()),
        );
        self.budget.earn();
        Ok(Some(Event::Opened(stream, port, carries)))
    }

    fn take_answer<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<Option<Event<'a>>, Error> {
        if self.is_idle(header.stream) {
            return Err(ErrorKind::MuxStream.into());
        }
        self.budget.spend()?;
        if !block::is_answer(payload) {
            return Err(ErrorKind::MuxHeaders.into());
        }
        Ok(Some(Event::Accepted(header.stream)))
    }

    fn take_reset<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<Option<Event<'a>>, Error> {
        if self.is_idle(header.stream) {
            return Err(ErrorKind::MuxStream.into());
        }
        let code = ErrorCode::received(number(payload));
        let Some(state) = self.streams.remove(&header.stream) else {
            return Ok(None);
        };
        if self.role == Role::Server {
            self.budget.reset(state.opened_ms, state.headers_sent)?;
        }
        Ok(Some(Event::Reset(header.stream, code)))
    }

    fn take_settings<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, Error> {
        if header.flags.contains(Flags::ACK) {
            return Ok(None);
        }
        if payload.len() > LIMITS.settings_entries * SETTING_BYTES {
            return Err(ErrorKind::MuxSettingsFlood.into());
        }
        self.settings_pending = false;
        let mut event = None;
        for setting in payload.chunks_exact(SETTING_BYTES) {
            let name = u16::from_be_bytes([setting[0], setting[1]]);
            let value = number(&setting[2..]);
            match name {
                SETTING_ENABLE_PUSH if value > 1 => return Err(ErrorKind::MuxSettings.into()),
                SETTING_MAX_STREAMS => self.peer_streams_max = value as usize,
                SETTING_INITIAL_WINDOW => {
                    if value > STREAM_ID_MAX {
                        return Err(ErrorKind::MuxFlowControl.into());
                    }
                    let change = i64::from(value) - self.peer_window;
                    self.peer_window = i64::from(value);
                    for state in self.streams.values_mut() {
                        state.send_credit += change;
                    }
                    event = Some(Event::Writable(0));
                }
                _ => {}
            }
        }
        frame(out, FrameType::Settings, Flags::ACK, 0, &[]);
        Ok(event)
    }

    fn take_credit<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<Option<Event<'a>>, Error> {
        let amount = i64::from(number(payload) & STREAM_ID_MAX);
        let limit = i64::from(STREAM_ID_MAX);
        let credit = match header.stream {
            0 => Some(&mut self.send_credit),
            stream => self.streams.get_mut(&stream).map(|it| &mut it.send_credit),
        };
        let Some(credit) = credit else {
            let idle = self.is_idle(header.stream);
            return if idle {
                Err(ErrorKind::MuxStream.into())
            } else {
                Ok(None)
            };
        };
        *credit += amount;
        if amount == 0 || *credit > limit {
            return Err(ErrorKind::MuxFlowControl.into());
        }
        Ok(Some(Event::Writable(header.stream)))
    }

    /// Answers a PING; the answer to ours says that the peer has heard what was sent before it.
    fn take_ping(&mut self, header: &FrameHeader, payload: &[u8], out: &mut Vec<u8>) {
        if !header.flags.contains(Flags::ACK) {
            frame(out, FrameType::Ping, Flags::ACK, 0, payload);
        } else if payload == LEAVING && self.is_leaving && !self.we_have_left {
            self.go_away(ErrorCode::NoError, out);
        }
    }

    fn take_go_away<'a>(&mut self, payload: &[u8]) -> Option<Event<'a>> {
        self.peer_has_left = true;
        Some(Event::GoAway(number(payload) & STREAM_ID_MAX))
    }

    /// Never opened: a frame for it is an error, not a late one.
    fn is_idle(&self, stream: u32) -> bool {
        match self.role {
            Role::Client => stream.is_multiple_of(2) || stream >= self.next_stream,
            Role::Server => stream.is_multiple_of(2) || stream > self.last_peer_stream,
        }
    }

    fn owe_connection(&mut self, count: u32, out: &mut Vec<u8>) {
        self.owed += count;
        if self.owed >= CONNECTION_WINDOW_BYTES / 2 {
            window_update(out, 0, self.owed);
            self.receive_credit += i64::from(std::mem::take(&mut self.owed));
        }
    }

    fn forget_if_over(&mut self, stream: u32) {
        let over = |it: &Stream| it.local_ended && it.remote_ended;
        if self.streams.get(&stream).is_some_and(over) {
            self.streams.remove(&stream);
            self.budget.closed();
        }
    }
}

impl Stream {
    fn new(send_credit: i64, headers_sent: bool, opened_ms: u64) -> Self {
        Self {
            send_credit,
            receive_credit: i64::from(STREAM_WINDOW_BYTES),
            owed: 0,
            local_ended: false,
            remote_ended: false,
            headers_sent,
            opened_ms,
        }
    }

    /// A taken stream begins with response headers.
    fn answer_first(&mut self, stream: u32, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.headers_sent, true) {
            let mut block = Vec::new();
            block::write_answer(&mut block);
            frame(out, FrameType::Headers, Flags::END_HEADERS, stream, &block);
        }
    }
}

fn say_go_away(out: &mut Vec<u8>, last_stream: u32, code: ErrorCode) {
    let mut payload = last_stream.to_be_bytes().to_vec();
    payload.extend_from_slice(&(code as u32).to_be_bytes());
    frame(out, FrameType::GoAway, Flags::default(), 0, &payload);
}

fn frame(out: &mut Vec<u8>, kind: FrameType, flags: Flags, stream: u32, payload: &[u8]) {
    let header = FrameHeader {
        length: payload.len() as u32,
        kind,
        flags,
        stream,
    };
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(payload);
}

fn reset(out: &mut Vec<u8>, stream: u32, code: ErrorCode) {
    frame(
        out,
        FrameType::RstStream,
        Flags::default(),
        stream,
        &(code as u32).to_be_bytes(),
    );
}

fn window_update(out: &mut Vec<u8>, stream: u32, amount: u32) {
    frame(
        out,
        FrameType::WindowUpdate,
        Flags::default(),
        stream,
        &amount.to_be_bytes(),
    );
}

/// A big-endian number of four bytes, which the frame's length has been checked to hold.
fn number(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |chunk| u32::from_be_bytes(*chunk))
}
