//! Decompression that goes to the end of the input and refuses what readers disagree on.
//!
//! Accepted: several gzip members, zeros behind the last, several zstd frames, small frames to skip.
//! Refused: anything else behind the end, large header fields, dictionaries, large windows, bombs.

use std::io::{self, BufRead, Read};

use super::Compression;

/// Real header fields are names and small indexes.
const GZIP_FIELD_LIMIT: usize = 4096;

/// Frames to skip carry small tables (of eStargz-like formats).
const SKIPPABLE_LIMIT: u64 = 1 << 20;

/// 128 MiB, zstd's own limit for `--long` without asking.
const WINDOW_LOG_LIMIT: u32 = 27;

/// Why a compressed stream is refused; inside an [`io::Error`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It is damaged, cut off, or something stands behind its end.
    #[error("{0}")]
    Corrupt(String),
    /// It costs too much.
    #[error("more than {limit} {what}")]
    Limit {
        /// Too much of what.
        what: &'static str,
        /// How much is accepted.
        limit: u64,
    },
    /// It cannot be read without something that is not in it.
    #[error("the zstd stream needs a dictionary")]
    Dictionary,
}

impl From<DecodeError> for io::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

fn corrupt(why: impl Into<String>) -> io::Error {
    DecodeError::Corrupt(why.into()).into()
}

/// Reads what a stream decompresses to.
pub struct Decoder<R: Read> {
    state: State<R>,
    ratio: u64,
    ratio_free: u64,
    decompressed: u64,
}

/// Compressed bytes are read ahead by this much.
const INPUT_BUFFER: usize = 128 * 1024;

enum State<R: Read> {
    Plain(R),
    /// Between two members or frames; `first` before the first.
    Between {
        input: Input<R>,
        compression: Compression,
        first: bool,
    },
    Gzip(Box<flate2::bufread::GzDecoder<Input<R>>>),
    Zstd {
        decoder: Box<zstd::stream::read::Decoder<'static, Input<R>>>,
        /// What the frame's header says of its size.
        declared: Option<u64>,
        /// Bytes that came out of it so far.
        held: u64,
    },
    /// For a moment, and after an error or the end.
    Ended,
}

impl<R: Read> Decoder<R> {
    /// Decodes `input`. More than `ratio` bytes per compressed byte are refused, after `ratio_free` bytes.
    pub fn new(compression: Compression, input: R, ratio: u64, ratio_free: u64) -> Self {
        let state = if compression == Compression::None {
            State::Plain(input)
        } else {
            State::Between {
                input: Input::new(input),
                compression,
                first: true,
            }
        };
        Self {
            state,
            ratio,
            ratio_free,
            decompressed: 0,
        }
    }

    /// Begins the next member or frame, or finds the end.
    fn begin(mut input: Input<R>, compression: Compression, first: bool) -> io::Result<State<R>> {
        if compression == Compression::Gzip {
            return match input.fill_buf()?.first() {
                None if first => Err(corrupt("the gzip stream is empty")),
                None => Ok(State::Ended),
                Some(0) if !first => only_zeros(input),
                Some(0x1f) => Ok(State::Gzip(Box::new(flate2::bufread::GzDecoder::new(input)))),
                Some(_) => Err(corrupt("something stands behind the end of the gzip stream")),
            };
        }
        if !first && input.fill_buf()?.is_empty() {
            return Ok(State::Ended);
        }
        // Magic, frame descriptor, window descriptor; or magic and length.
        let head = input.peek(FRAME_HEADER_LIMIT)?;
        let declared = declared_size(head);
        match *head {
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, a, b, c, d, ..] => {
                let size = u64::from(u32::from_le_bytes([a, b, c, d]));
                input.consume(8);
                if size > SKIPPABLE_LIMIT {
                    return Err(DecodeError::Limit {
                        what: "bytes in a zstd frame to skip",
                        limit: SKIPPABLE_LIMIT,
                    }
                    .into());
                }
                if io::copy(&mut (&mut input).take(size), &mut io::sink())? != size {
                    return Err(corrupt("the zstd stream is cut off"));
                }
                Ok(State::Between {
                    input,
                    compression,
                    first: false,
                })
            }
            [0x28, 0xb5, 0x2f, 0xfd, descriptor, window, ..] => {
                check_frame_header(descriptor, window)?;
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?.single_frame();
                decoder.window_log_max(WINDOW_LOG_LIMIT)?;
                Ok(State::Zstd {
                    decoder: Box::new(decoder),
                    declared,
                    held: 0,
                })
            }
            _ => Err(corrupt("something stands behind the end of the zstd stream")),
        }
    }

    fn step(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match &mut self.state {
            State::Ended => return Ok(Some(0)),
            State::Plain(input) => return input.read(buffer).map(Some),
            State::Gzip(decoder) => {
                let read = decoder
                    .read(buffer)
                    .map_err(|error| damaged("gzip", error, decoder.get_ref().failed))?;
                check_gzip_header(decoder)?;
                if read > 0 {
                    let consumed = decoder.get_ref().count;
                    return self.count(read, consumed).map(Some);
                }
            }
            State::Zstd {
                decoder,
                declared,
                held,
            } => {
                let read = decoder
                    .read(buffer)
                    .map_err(|error| damaged("zstd", error, decoder.get_ref().failed))?;
                *held += read as u64;
                if read == 0
                    && let Some(declared) = declared.filter(|declared| declared != held)
                {
                    // zstd itself looks only where the whole frame is before it.
                    return Err(corrupt(format!(
                        "a zstd frame says that it holds {declared} bytes and holds {held}"
                    )));
                }
                if read > 0 {
                    let consumed = decoder.get_ref().count;
                    return self.count(read, consumed).map(Some);
                }
            }
            State::Between { .. } => {}
        }
        self.state = match std::mem::replace(&mut self.state, State::Ended) {
            State::Gzip(decoder) => State::Between {
                input: decoder.into_inner(),
                compression: Compression::Gzip,
                first: false,
            },
            State::Zstd { decoder, .. } => State::Between {
                input: decoder.finish(),
                compression: Compression::Zstd,
                first: false,
            },
            State::Between {
                input,
                compression,
                first,
            } => Self::begin(input, compression, first)?,
            other => other,
        };
        Ok(None)
    }

    fn count(&mut self, read: usize, consumed: u64) -> io::Result<usize> {
        self.decompressed += read as u64;
        let most = consumed
            .saturating_mul(self.ratio)
            .saturating_add(self.ratio_free);
        if self.decompressed > most {
            return Err(DecodeError::Limit {
                what: "decompressed bytes per compressed byte",
                limit: self.ratio,
            }
            .into());
        }
        Ok(read)
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(read) = self.step(buffer)? {
                return Ok(read);
            }
        }
    }
}

/// An error of the codec is about the stream; an error that passed through it is not.
fn damaged(format: &str, error: io::Error, reading_failed: bool) -> io::Error {
    if reading_failed {
        return error;
    }
    if error.to_string().contains("too much memory") {
        return DecodeError::Limit {
            what: "bytes of zstd window",
            limit: 1 << WINDOW_LOG_LIMIT,
        }
        .into();
    }
    corrupt(format!("the {format} stream is damaged or cut off: {error}"))
}

fn check_gzip_header<R: BufRead>(decoder: &flate2::bufread::GzDecoder<R>) -> io::Result<()> {
    let Some(header) = decoder.header() else {
        return Ok(());
    };
    let longest = [header.extra(), header.filename(), header.comment()]
        .into_iter()
        .flatten()
        .map(<[u8]>::len)
        .max();
    if longest.is_some_and(|length| length > GZIP_FIELD_LIMIT) {
        return Err(DecodeError::Limit {
            what: "bytes in a gzip header field",
            limit: GZIP_FIELD_LIMIT as u64,
        }
        .into());
    }
    Ok(())
}

/// Magic, descriptor, window, and a size of up to eight bytes; a dictionary's number is refused.
const FRAME_HEADER_LIMIT: usize = 14;

/// The size that a zstd frame's header declares; none also where the header is cut off, which the decoder says.
///
/// Source: RFC 8878, section 3.1.1.1.
fn declared_size(frame: &[u8]) -> Option<u64> {
    let descriptor = *frame.get(4)?;
    let is_single_segment = descriptor & 0b10_0000 != 0;
    let start = if is_single_segment { 5 } else { 6 };
    let (length, offset) = match descriptor >> 6 {
        0 if is_single_segment => (1, 0),
        0 => return None,
        1 => (2, 256),
        2 => (4, 0),
        _ => (8, 0),
    };
    let mut size = [0; 8];
    size[..length].copy_from_slice(frame.get(start..start + length)?);
    u64::from_le_bytes(size).checked_add(offset)
}

/// Needs a frame a dictionary, or a window that is too large?
fn check_frame_header(descriptor: u8, window: u8) -> io::Result<()> {
    if descriptor & 0b11 != 0 {
        return Err(DecodeError::Dictionary.into());
    }
    // Without a window of its own a frame says its whole size, which the decoder bounds.
    let has_window = descriptor & 0b10_0000 == 0;
    let log = 10 + u32::from(window >> 3);
    if has_window && (log > WINDOW_LOG_LIMIT || log == WINDOW_LOG_LIMIT && window & 7 != 0) {
        return Err(DecodeError::Limit {
            what: "bytes of zstd window",
            limit: 1 << WINDOW_LOG_LIMIT,
        }
        .into());
    }
    Ok(())
}

fn only_zeros<R: Read>(mut input: Input<R>) -> io::Result<State<R>> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(State::Ended);
        }
        if buffer.iter().any(|byte| *byte != 0) {
            return Err(corrupt("something stands behind the end of the gzip stream"));
        }
        let length = buffer.len();
        input.consume(length);
    }
}

/// Compressed bytes, read ahead so that the next few can be looked at.
struct Input<R> {
    inner: R,
    buffer: Vec<u8>,
    position: usize,
    /// Compressed bytes read so far.
    count: u64,
    /// Whether reading itself failed, so that the stream is not to blame.
    failed: bool,
}

impl<R: Read> Input<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            buffer: Vec::with_capacity(INPUT_BUFFER),
            position: 0,
            count: 0,
            failed: false,
        }
    }

    /// The next bytes without taking them, fewer than asked for only at the end.
    fn peek(&mut self, wanted: usize) -> io::Result<&[u8]> {
        while self.buffer.len() - self.position < wanted {
            if self.refill()? == 0 {
                break;
            }
        }
        let end = self.buffer.len().min(self.position + wanted);
        Ok(&self.buffer[self.position..end])
    }

    fn refill(&mut self) -> io::Result<usize> {
        self.buffer.drain(..self.position);
        self.position = 0;
        let kept = self.buffer.len();
        self.buffer.resize(INPUT_BUFFER.max(kept + 1), 0);
        let read = loop {
            match self.inner.read(&mut self.buffer[kept..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(kept + read.as_ref().copied().unwrap_or(0));
        self.failed |= read.is_err();
        self.count += read.as_ref().map_or(0, |read| *read as u64);
        read
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let read = available.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: Read> BufRead for Input<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.buffer.len() {
            self.refill()?;
        }
        Ok(&self.buffer[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position = (self.position + amount).min(self.buffer.len());
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn read(stream: &[u8], at_once: usize) -> io::Result<usize> {
        let mut decoder = Decoder::new(Compression::Zstd, stream, 1_000_000, 0);
        let (mut buffer, mut all) = (vec![0; at_once], 0);
        loop {
            match decoder.read(&mut buffer)? {
                0 => return Ok(all),
                read => all += read,
            }
        }
    }

    #[rstest]
    #[case::one_byte(100)]
    #[case::two_bytes(60_000)]
    #[case::four_bytes(70_000)]
    fn a_frame_holds_what_its_header_says(#[case] length: usize) {
        let frame = zstd::bulk::compress(&vec![7; length], 3).unwrap();
        assert_eq!(declared_size(&frame), Some(length as u64));
        for at_once in [1, 877, 1 << 20] {
            assert_eq!(read(&frame, at_once).unwrap(), length);
        }
    }

    /// zstd notices this in a large buffer and does not in a small one.
    #[test]
    fn a_frame_that_holds_less_is_refused_however_it_is_read() {
        let empty_block = [0x28, 0xb5, 0x2f, 0xfd, 0x40, 0x48, 0x6d, 0x02, 0x01, 0x00, 0x00];
        for at_once in [1, 100, 1 << 20] {
            let error = read(&empty_block, at_once).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }
}
