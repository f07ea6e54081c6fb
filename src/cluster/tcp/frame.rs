//! What goes over the connection of two ranks: frames, each with the call that it belongs to and the number of its bytes, so that
//! ranks that do not call alike find out instead of reading on.

use std::fmt;
use std::io::{self, Read, Write};

/// How every frame begins.
const MAGIC: [u8; 4] = *b"mcRK";
/// Bytes before those of the call.
const HEADER: usize = 13;
/// The longest frame, 64 GiB: more than any call brings, and less than what a header read in the wrong place asks for.
const LONGEST: u64 = 1 << 36;
/// Frames up to here go in one write with their header.
const SMALL: usize = 1 << 16;
/// Room that is made before the bytes are there.
const ROOM: u64 = 1 << 24;

/// What ranks call together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Call {
    SumF32 = 1,
    MaxF32,
    SumF64,
    MaxF64,
    Gather,
    Trade,
    Broadcast,
    Barrier,
}

/// All of them.
const CALLS: [Call; 8] = [
    Call::SumF32,
    Call::MaxF32,
    Call::SumF64,
    Call::MaxF64,
    Call::Gather,
    Call::Trade,
    Call::Broadcast,
    Call::Barrier,
];

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SumF32 => "a sum of f32",
            Self::MaxF32 => "a maximum of f32",
            Self::SumF64 => "a sum of f64",
            Self::MaxF64 => "a maximum of f64",
            Self::Gather => "a gathering",
            Self::Trade => "a trade",
            Self::Broadcast => "a broadcast",
            Self::Barrier => "a barrier",
        })
    }
}

/// Why a frame was not received.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The connection has ended.
    Connection(io::Error),
    /// The other rank does something else: what was expected and what was found.
    Other(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

/// Sends what this rank brings to `call`, or what the call gives.
pub(super) fn send(mut stream: impl Write, call: Call, bytes: &[u8]) -> io::Result<()> {
    let mut header = Vec::with_capacity(HEADER + if bytes.len() <= SMALL { bytes.len() } else { 0 });
    header.extend_from_slice(&MAGIC);
    header.push(call as u8);
    header.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    if bytes.len() <= SMALL {
        header.extend_from_slice(bytes);
        return stream.write_all(&header);
    }
    stream.write_all(&header)?;
    stream.write_all(bytes)
}

/// Receives what belongs to `call`, of `length` bytes where that is known.
pub(super) fn receive(mut stream: impl Read, call: Call, length: Option<usize>) -> Result<Vec<u8>, Trouble> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let [m0, m1, m2, m3, number, count @ ..] = header;
    if [m0, m1, m2, m3] != MAGIC {
        let reason = format!("expected a frame of {call}, found other bytes");
        return Err(Trouble::Other(reason));
    }
    let count = u64::from_le_bytes(count);
    let found = CALLS.iter().find(|other| **other as u8 == number);
    if found != Some(&call) {
        let found = found.map_or_else(|| format!("call {number}"), ToString::to_string);
        return Err(Trouble::Other(format!("expected {call}, found {found}")));
    }
    if count > LONGEST || length.is_some_and(|length| length as u64 != count) {
        let expected = length.map_or_else(|| format!("at most {LONGEST}"), |length| length.to_string());
        let reason = format!("expected {expected} bytes of {call}, found {count}");
        return Err(Trouble::Other(reason));
    }
    let mut bytes = Vec::with_capacity(count.min(ROOM) as usize);
    let read = stream.take(count).read_to_end(&mut bytes)?;
    if read as u64 != count {
        return Err(Trouble::Connection(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(call: Call, bytes: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        send(&mut frame, call, bytes).unwrap();
        frame
    }

    fn other(frame: &[u8], call: Call, length: Option<usize>) -> String {
        match receive(frame, call, length) {
            Err(Trouble::Other(reason)) => reason,
            found => panic!("{found:?}"),
        }
    }

    #[test]
    fn frames_arrive_as_they_were_sent() {
        for length in [0, 1, SMALL, SMALL + 1] {
            let bytes: Vec<u8> = (0..length).map(|place| place as u8).collect();
            let frame = sent(Call::Gather, &bytes);
            assert_eq!(receive(frame.as_slice(), Call::Gather, None).unwrap(), bytes);
            let part = &frame[..frame.len() - 1];
            assert!(matches!(
                receive(part, Call::Gather, None),
                Err(Trouble::Connection(_))
            ));
        }
    }

    #[test]
    fn what_is_no_frame_of_the_call_is_named() {
        let frame = sent(Call::SumF32, &[0; 8]);
        assert_eq!(
            other(&frame, Call::Barrier, Some(0)),
            "expected a barrier, found a sum of f32"
        );
        assert_eq!(
            other(&frame, Call::SumF32, Some(4)),
            "expected 4 bytes of a sum of f32, found 8"
        );
        assert_eq!(
            other(b"GET / HTTP/1.1\r\n", Call::Gather, None),
            "expected a frame of a gathering, found other bytes"
        );
        let mut long = frame;
        long[5..13].copy_from_slice(&u64::MAX.to_le_bytes());
        let reason = other(&long, Call::SumF32, None);
        assert!(reason.starts_with("expected at most "), "{reason}");
    }
}
