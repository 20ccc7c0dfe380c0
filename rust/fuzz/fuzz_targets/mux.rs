//! Invariant: A meshfast/1 connection means the same however its bytes are cut, as caller and as callee. It never
//! hands out more bytes than it gave credit for, tells of a stream only between its beginning and its end,
//! and answers no more than the peer has earned.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| meshfast_fuzz::invariants::mux(bytes));
