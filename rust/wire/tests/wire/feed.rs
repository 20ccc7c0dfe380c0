//! Feeds bytes to the parsers in pieces and tells what came of it. Shared with the fuzz targets.

use meshfast_wire::Error;
use meshfast_wire::h1::{
    BodyDecoder, BodyEvent, Framing, Limits, Method, Parsed, RequestHead, ResponseHead,
};

/// What a body came to: payload and trailers so far, and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    pub payload: Vec<u8>,
    pub trailers: Vec<(Vec<u8>, Vec<u8>)>,
    pub end: BodyEnd,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyEnd {
    /// After this many bytes of input.
    After(usize),
    Failed(Error),
    #[default]
    NeedsMore,
}

/// The head in `bytes` when they arrive up to each of `cuts` and then whole; `None` without an end.
pub fn request(
    bytes: &[u8],
    limits: &Limits,
    cuts: &[usize],
) -> Result<Option<RequestHead>, Error> {
    let mut head = RequestHead::new();
    for &cut in cuts.iter().chain([&bytes.len()]) {
        if head.parse(&bytes[..cut], limits)? == Parsed::Complete {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

/// As [`request`], for the answer to a request of `method`.
pub fn response(
    bytes: &[u8],
    limits: &Limits,
    method: Method,
    cuts: &[usize],
) -> Result<Option<ResponseHead>, Error> {
    let mut head = ResponseHead::new();
    for &cut in cuts.iter().chain([&bytes.len()]) {
        if head.parse(&bytes[..cut], limits, method)? == Parsed::Complete {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

/// The body in `bytes` when they arrive in pieces that end at each of `cuts`.
pub fn body(bytes: &[u8], limits: &Limits, framing: Framing, cuts: &[usize]) -> Body {
    let mut decoder = BodyDecoder::new(framing, limits);
    let mut body = Body::default();
    let mut start = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        body.end = piece(&mut decoder, &bytes[..cut], start, &mut body);
        if body.end != BodyEnd::NeedsMore {
            break;
        }
        start = cut;
    }
    body
}

/// Decodes `bytes` from `at` on until the decoder wants more or ends.
fn piece(decoder: &mut BodyDecoder, bytes: &[u8], mut at: usize, body: &mut Body) -> BodyEnd {
    loop {
        let (consumed, event) = match decoder.decode(&bytes[at..]) {
            Ok(decoded) => decoded,
            Err(error) => return BodyEnd::Failed(error),
        };
        at += consumed;
        match event {
            BodyEvent::Data(data) => {
                assert!(!data.is_empty(), "data is never empty");
                body.payload.extend_from_slice(data);
            }
            BodyEvent::End => {
                assert!(decoder.is_ended());
                return BodyEnd::After(at);
            }
            BodyEvent::NeedMore => {
                assert_eq!(at, bytes.len(), "what needs more has consumed everything");
                return BodyEnd::NeedsMore;
            }
            BodyEvent::Trailers(trailers) => {
                let fields = trailers
                    .iter()
                    .map(|(name, value)| (name.to_vec(), value.to_vec()));
                body.trailers.extend(fields);
                assert!(!body.trailers.is_empty(), "a trailer event has trailers");
            }
        }
    }
}

/// The ways `len` bytes are cut in the tests: not at all, byte by byte, and at every position: in
/// two, or of long inputs into pieces, so that each position begins a piece in one of the ways.
pub fn all_cuts(len: usize) -> Vec<Vec<usize>> {
    const IN_TWO_UP_TO: usize = 20_000;
    const PIECE: usize = 64;
    let mut cuts = vec![vec![], (1..len).collect()];
    if len <= IN_TWO_UP_TO {
        cuts.extend((1..len).map(|cut| vec![cut]));
    } else {
        cuts.extend((1..=PIECE).map(|start| (start..len).step_by(PIECE).collect()));
    }
    cuts
}

/// What every way of cutting makes of the bytes.
///
/// # Panics
/// When two ways differ.
pub fn same<T: std::fmt::Debug>(len: usize, outcome: impl Fn(&[usize]) -> T) -> T {
    let whole = outcome(&[]);
    let expected = format!("{whole:?}");
    for cuts in all_cuts(len) {
        let cut = outcome(&cuts);
        let first = &cuts[..cuts.len().min(2)];
        assert_eq!(format!("{cut:?}"), expected, "cut at {first:?} and so on");
    }
    whole
}
