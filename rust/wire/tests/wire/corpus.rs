//! Replays the committed inputs of the fuzz targets (`rust/fuzz/corpus/<target>/`): seeds, and the
//! bytes of every past finding.

use crate::invariants;
use std::fs;
use std::path::Path;

fn replay(target: &str, invariant: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&directory).expect("the corpus is committed") {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        println!("{}", path.display());
        invariant(&bytes);
        inputs += 1;
    }
    assert!(inputs >= 5, "{target} has {inputs} inputs");
}

#[test]
fn request_head_corpus_holds() {
    replay("request_head", invariants::request_head);
}

#[test]
fn response_head_corpus_holds() {
    replay("response_head", invariants::response_head);
}

#[test]
fn body_chunked_corpus_holds() {
    replay("body_chunked", invariants::body_chunked);
}

#[test]
fn frame_corpus_holds() {
    replay("frame", invariants::frame);
}

#[test]
fn mux_corpus_holds() {
    replay("mux", invariants::mux);
}

#[test]
fn sniff_corpus_holds() {
    replay("sniff", invariants::sniff);
}
