//! Frame headers: what decodes, what is refused, with which code.

use crate::invariants;
use meshfast_wire::frame::{
    ErrorCode, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_DEFAULT, FRAME_PAYLOAD_BYTES_MAX, Flags,
    FrameHeader, FrameType, PREFACE, STREAM_ID_MAX, read_preface,
};

const DEFAULT: u32 = FRAME_PAYLOAD_BYTES_DEFAULT;

fn header(kind: FrameType, length: u32, stream: u32, flags: Flags) -> FrameHeader {
    FrameHeader {
        length,
        kind,
        flags,
        stream,
    }
}

fn refusal(header: FrameHeader) -> Option<(&'static str, ErrorCode)> {
    let bytes = header.encode();
    invariants::frame(&bytes);
    match FrameHeader::decode(&bytes, DEFAULT) {
        Ok(decoded) => {
            assert_eq!(decoded, Some(header));
            None
        }
        Err(error) => Some((error.detail(), ErrorCode::of(&error))),
    }
}

#[test]
fn encodes_the_nine_bytes_in_network_order() {
    let data = header(
        FrameType::Data,
        0x01_02_03,
        0x04_05_06_07,
        Flags::END_STREAM,
    );
    assert_eq!(data.encode(), [1, 2, 3, 0, 1, 4, 5, 6, 7]);
    let decoded = FrameHeader::decode(&data.encode(), FRAME_PAYLOAD_BYTES_MAX);
    assert_eq!(decoded, Ok(Some(data)));
}

#[test]
fn waits_for_all_nine_bytes() {
    let bytes = header(FrameType::Ping, 8, 0, Flags::ACK).encode();
    for len in 0..FRAME_HEADER_BYTES {
        assert_eq!(FrameHeader::decode(&bytes[..len], DEFAULT), Ok(None));
    }
    let longer = [&bytes[..], b"12345678"].concat();
    assert!(FrameHeader::decode(&longer, DEFAULT).unwrap().is_some());
}

#[test]
fn ignores_the_reserved_bit() {
    let bytes = [0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let decoded = FrameHeader::decode(&bytes, DEFAULT).unwrap().unwrap();
    assert_eq!(decoded.stream, STREAM_ID_MAX);
}

#[test]
fn refuses_a_payload_above_the_announced_size() {
    let fits = header(FrameType::Data, DEFAULT, 1, Flags::default());
    assert_eq!(refusal(fits), None);
    let wide = FrameHeader {
        length: DEFAULT + 1,
        ..fits
    };
    assert_eq!(
        refusal(wide),
        Some(("frame.too_large", ErrorCode::FrameSizeError))
    );
    let unknown = FrameHeader {
        kind: FrameType::Unknown(0xbe),
        ..wide
    };
    assert_eq!(
        refusal(unknown),
        Some(("frame.too_large", ErrorCode::FrameSizeError))
    );
}

#[test]
fn refuses_lengths_a_type_does_not_allow() {
    let table = [
        (FrameType::Priority, 1, &[5][..], &[0, 4, 6][..]),
        (FrameType::RstStream, 1, &[4], &[0, 3, 5]),
        (FrameType::Settings, 0, &[0, 6, 12], &[1, 5, 7]),
        (FrameType::PushPromise, 1, &[4, 9], &[0, 3]),
        (FrameType::Ping, 0, &[8], &[0, 7, 9]),
        (FrameType::GoAway, 0, &[8, 100], &[0, 7]),
        (FrameType::WindowUpdate, 0, &[4], &[0, 3, 5]),
        (FrameType::WindowUpdate, 7, &[4], &[0, 3, 5]),
        (FrameType::Data, 1, &[0, 1, DEFAULT], &[]),
        (FrameType::Headers, 1, &[0, 1, DEFAULT], &[]),
        (FrameType::Continuation, 1, &[0, DEFAULT], &[]),
        (FrameType::Unknown(10), 0, &[0, 1, DEFAULT], &[]),
    ];
    for (kind, stream, good, bad) in table {
        for &length in good {
            assert_eq!(
                refusal(header(kind, length, stream, Flags::default())),
                None,
                "{kind:?}"
            );
        }
        for &length in bad {
            let refused = refusal(header(kind, length, stream, Flags::default()));
            assert_eq!(
                refused,
                Some(("frame.length", ErrorCode::FrameSizeError)),
                "{kind:?}"
            );
        }
    }
    let ack = header(FrameType::Settings, 6, 0, Flags::ACK);
    assert_eq!(
        refusal(ack),
        Some(("frame.length", ErrorCode::FrameSizeError))
    );
}

#[test]
fn refuses_streams_a_type_does_not_allow() {
    let table = [
        (FrameType::Data, 0, 0),
        (FrameType::Headers, 0, 0),
        (FrameType::Priority, 5, 0),
        (FrameType::RstStream, 4, 0),
        (FrameType::PushPromise, 4, 0),
        (FrameType::Continuation, 0, 0),
        (FrameType::Settings, 0, 1),
        (FrameType::Ping, 8, 1),
        (FrameType::GoAway, 8, 1),
    ];
    for (kind, length, stream) in table {
        let refused = refusal(header(kind, length, stream, Flags::default()));
        assert_eq!(
            refused,
            Some(("frame.stream", ErrorCode::ProtocolError)),
            "{kind:?}"
        );
    }
}

#[test]
fn every_type_code_survives_a_round_trip() {
    for code in 0..=u8::MAX {
        assert_eq!(FrameType::of(code).code(), code);
    }
    assert_eq!(FrameType::of(9), FrameType::Continuation);
    assert_eq!(FrameType::of(10), FrameType::Unknown(10));
}

#[test]
fn combines_flags() {
    let both = Flags::END_STREAM.with(Flags::END_HEADERS);
    assert_eq!(both, Flags(0x05));
    assert!(both.contains(Flags::END_HEADERS) && !both.contains(Flags::PADDED));
}

#[test]
fn error_codes_sit_at_their_number() {
    for (at, code) in ErrorCode::ALL.into_iter().enumerate() {
        assert_eq!(code as usize, at);
        assert_eq!(ErrorCode::received(at as u32), code);
    }
    assert_eq!(ErrorCode::RefusedStream as u32, 7);
    assert_eq!(ErrorCode::received(14), ErrorCode::InternalError);
    assert_eq!(ErrorCode::received(u32::MAX), ErrorCode::InternalError);
}

#[test]
fn reads_the_preface_at_every_cut() {
    for len in 0..PREFACE.len() {
        assert_eq!(read_preface(&PREFACE[..len]), Ok(false));
        let mut wrong = PREFACE[..=len].to_vec();
        wrong[len] ^= 1;
        assert_eq!(read_preface(&wrong).unwrap_err().detail(), "frame.preface");
    }
    assert_eq!(read_preface(PREFACE), Ok(true));
    assert_eq!(read_preface(&[&PREFACE[..], b"more"].concat()), Ok(true));
}
