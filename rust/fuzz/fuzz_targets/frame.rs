//! Invariant: A frame header that decodes keeps its size limit and encodes to the bytes it came from but for the
//! reserved bit; the connection preface is recognised from its own prefixes only.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| meshfast_fuzz::invariants::frame(bytes));
