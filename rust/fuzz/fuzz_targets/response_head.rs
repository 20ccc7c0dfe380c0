//! Invariant: A response head means the same however its bytes are cut, for the request method the first byte
//! chooses. A head that is taken has exactly the body its method and status allow, and 101 only with
//! the protocol it switches to.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| meshfast_fuzz::invariants::response_head(bytes));
