//! Invariant: A chunked body means the same however its bytes are cut. Payload is never more than its input, and
//! payload and trailers of a body that is taken survive being framed anew.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| meshfast_fuzz::invariants::body_chunked(bytes));
