//! What a token of the epoll set stands for.
//!
//! A token's lowest three bits say what it is and the rest which one, so that an event leads to its
//! session without a table. What it does not do: say whether that one still is there; events of a
//! session that has gone are noted nowhere.
//!
//! Tests: every test of a whole worker.

use mio::Token;

use crate::timers::Key;

/// What a token of the epoll set stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Control,
    Inbox,
    Listener(usize),
    Resolver,
    Session(Key),
}

pub(super) const CONTROL: Token = Token(4);
pub(super) const INBOX: Token = Token(12);
pub(super) const RESOLVER: Token = Token(20);

/// The lowest three bits say what it is, the rest which one.
const KIND_BITS: u32 = 3;

impl Place {
    pub(super) fn of(token: Token) -> Self {
        let index = token.0 >> KIND_BITS;
        match token.0 & 7 {
            0 => Self::Session(Key::Downstream(index)),
            1 => Self::Session(Key::Upstream(index)),
            2 => Self::Listener(index),
            3 => Self::Session(Key::Leg(index)),
            _ if token == CONTROL => Self::Control,
            _ if token == INBOX => Self::Inbox,
            _ => Self::Resolver,
        }
    }
}

impl Key {
    pub(crate) fn token(self) -> Token {
        match self {
            Self::Downstream(id) => Token(id << KIND_BITS),
            Self::Upstream(id) => Token(id << KIND_BITS | 1),
            Self::Leg(id) => Token(id << KIND_BITS | 3),
            Self::Exchange(_) => unreachable!("exchanges have no socket"),
        }
    }
}

pub(crate) fn listener_token(index: usize) -> Token {
    Token(index << KIND_BITS | 2)
}
