//! Invariant: An answer given for a prefix is the answer for every longer input; 24 bytes always have one; HTTP/2
//! is its whole preface and nothing less.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| meshfast_fuzz::invariants::sniff(bytes));
