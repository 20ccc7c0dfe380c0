//! Invariant: A request head means the same however its bytes are cut. A head that is taken has one framing, one
//! valid Host, a visible-ASCII target and no control byte in any line; its spans lie inside it; and its
//! lines, written out again, parse to the same head.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| meshfast_fuzz::invariants::request_head(bytes));
