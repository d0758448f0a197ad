//! Gzip whose bytes depend on nothing but the input: not on threads, time, machine or run.
//!
//! The input is cut into blocks of a fixed size, each deflated by itself with no memory of the one before and
//! ended on a byte boundary, so that any number of threads makes the same stream. The result is one gzip
//! member as any other: header without time and name (RFC 1952), blocks, CRC, length.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::{Arc, Mutex, mpsc},
};

use flate2::{Compress, FlushCompress, Status};

use crate::image::{Digest, Hasher};

/// Name, version and level of the encoder; changing any of them changes the digests of new layers.
pub const COMPRESSOR: &str = "zlib-rs/0.6/2/512KiB";

/// Measured (the table is in the message of the commit that brought this file): level 1 stores a fifth more,
/// level 3 a twentieth less in a fifth more time.
const LEVEL: u32 = 2;

/// Matches do not cross blocks, which costs under 1 % at this size.
const BLOCK: usize = 512 << 10;

/// Three blocks a thread are in memory, each under one MiB with its result.
const THREADS_LIMIT: usize = 8;

/// Deflate, no flags, no time, no extra flags, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// What was read and what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// Digest of the gzip stream.
    pub digest: Digest,
    /// Bytes of the gzip stream.
    pub size: u64,
    /// Digest of the input, by the algorithm that was asked for.
    pub input_digest: Digest,
    /// Bytes of the input.
    pub input_size: u64,
}

/// Compresses `input` on up to `threads` threads and hands the stream, piece by piece, to `sink`.
///
/// # Errors
/// Those of `input` and of `sink`.
pub fn gzip(
    mut input: impl Read,
    input_hasher: Hasher,
    threads: usize,
    sink: impl FnMut(Vec<u8>) -> io::Result<()>,
) -> io::Result<Compressed> {
    let threads = threads.clamp(1, THREADS_LIMIT);
    std::thread::scope(|scope| {
        let (jobs, waiting) = mpsc::sync_channel::<Job>(threads);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..threads {
            let waiting = waiting.clone();
            scope.spawn(move || work(&waiting));
        }
        // Only the workers hold it then, and sending to dead workers fails instead of waiting.
        drop(waiting);

        let mut output = Output {
            sink,
            hasher: Hasher::sha256(),
            crc: crc32fast::Hasher::new(),
        };
        output.write(HEADER.to_vec())?;
        let mut input_hasher = input_hasher;
        let mut in_flight = VecDeque::with_capacity(2 * threads);
        // Blocks that were compressed are filled again: fresh memory costs as much as reading into it.
        let mut spare = Vec::new();
        let mut block = read_block(&mut input, &mut spare)?;
        loop {
            let next = read_block(&mut input, &mut spare)?;
            let is_last = next.is_empty();
            input_hasher.update(&block);
            let (reply, result) = mpsc::sync_channel(1);
            let job = Job {
                block,
                is_last,
                reply,
            };
            jobs.send(job).map_err(|_| worker_died())?;
            in_flight.push_back(result);
            if is_last {
                break;
            }
            if in_flight.len() == 2 * threads
                && let Some(first) = in_flight.pop_front()
            {
                spare.push(output.take(&first)?);
            }
            block = next;
        }
        drop(jobs);
        for result in in_flight {
            output.take(&result)?;
        }
        output.finish(input_hasher)
    })
}

struct Job {
    block: Vec<u8>,
    is_last: bool,
    reply: mpsc::SyncSender<io::Result<Deflated>>,
}

struct Deflated {
    bytes: Vec<u8>,
    crc: crc32fast::Hasher,
    /// The input, whose memory is used again.
    block: Vec<u8>,
}

fn work(waiting: &Mutex<mpsc::Receiver<Job>>) {
    let mut encoder = Compress::new(flate2::Compression::new(LEVEL), false);
    // Room for a block that does not compress, and for the flush behind it.
    let mut scratch = Vec::with_capacity(BLOCK + BLOCK / 1000 + 1024);
    loop {
        let job = match waiting.lock() {
            Ok(jobs) => jobs.recv(),
            Err(_) => return,
        };
        let Ok(Job {
            block,
            is_last,
            reply,
        }) = job
        else {
            return;
        };
        encoder.reset();
        let mut crc = crc32fast::Hasher::new();
        crc.update(&block);
        let result = deflate(&mut encoder, &block, is_last, &mut scratch).map(|()| Deflated {
            bytes: scratch.clone(),
            crc,
            block,
        });
        // Who waited has given up when this fails.
        let _ = reply.send(result);
    }
}

fn deflate(encoder: &mut Compress, block: &[u8], is_last: bool, output: &mut Vec<u8>) -> io::Result<()> {
    let flush = if is_last {
        FlushCompress::Finish
    } else {
        FlushCompress::Sync
    };
    output.clear();
    let status = encoder
        .compress_vec(block, output, flush)
        .map_err(io::Error::other)?;
    let is_complete = match status {
        Status::StreamEnd => is_last,
        Status::Ok | Status::BufError => !is_last,
    };
    if !is_complete || encoder.total_in() != block.len() as u64 || output.len() == output.capacity() {
        return Err(io::Error::other("the encoder did not take a whole block"));
    }
    Ok(())
}

/// A full block, or what is left.
fn read_block(input: &mut impl Read, spare: &mut Vec<Vec<u8>>) -> io::Result<Vec<u8>> {
    let mut block = spare.pop().unwrap_or_else(|| Vec::with_capacity(BLOCK));
    block.clear();
    input.take(BLOCK as u64).read_to_end(&mut block)?;
    Ok(block)
}

struct Output<S> {
    sink: S,
    hasher: Hasher,
    crc: crc32fast::Hasher,
}

impl<S: FnMut(Vec<u8>) -> io::Result<()>> Output<S> {
    /// Writes a block's result and gives the block back.
    fn take(&mut self, result: &mpsc::Receiver<io::Result<Deflated>>) -> io::Result<Vec<u8>> {
        let deflated = result.recv().map_err(|_| worker_died())??;
        self.crc.combine(&deflated.crc);
        self.write(deflated.bytes)?;
        Ok(deflated.block)
    }

    fn write(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        self.hasher.update(&bytes);
        (self.sink)(bytes)
    }

    fn finish(mut self, input: Hasher) -> io::Result<Compressed> {
        let input_size = input.length();
        let crc = self.crc.clone().finalize();
        // The length modulo 2^32, as the format wants it.
        let length = &input_size.to_le_bytes()[..4];
        self.write([&crc.to_le_bytes()[..], length].concat())?;
        Ok(Compressed {
            size: self.hasher.length(),
            digest: self.hasher.finish(),
            input_digest: input.finish(),
            input_size,
        })
    }
}

fn worker_died() -> io::Error {
    io::Error::other("a compression thread died")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::compress::{Compression, Decoder};

    fn compress(input: &[u8], threads: usize) -> (Compressed, Vec<u8>) {
        let mut stream = Vec::new();
        let compressed = gzip(input, Hasher::sha256(), threads, |piece| {
            stream.extend(piece);
            Ok(())
        })
        .unwrap();
        (compressed, stream)
    }

    /// Text-like and noise-like stretches, of any length.
    fn input() -> impl Strategy<Value = Vec<u8>> {
        let stretch = prop_oneof![
            (any::<u8>(), 0..700_000_usize).prop_map(|(byte, length)| vec![byte; length]),
            (any::<u64>(), 0..700_000_usize).prop_map(|(seed, length)| {
                let mut state = seed | 1;
                let mut noise = Vec::with_capacity(length);
                for _ in 0..length {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    noise.push((state >> 56) as u8);
                }
                noise
            }),
        ];
        prop::collection::vec(stretch, 0..8).prop_map(|stretches| stretches.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn the_bytes_do_not_depend_on_threads_and_are_the_input_again(input in input()) {
            let (one, stream) = compress(&input, 1);
            let (many, same) = compress(&input, 5);
            prop_assert_eq!(&one, &many);
            prop_assert!(stream == same);
            prop_assert_eq!(&one.digest, &Digest::of(&stream));
            prop_assert_eq!(&one.input_digest, &Digest::of(&input));
            prop_assert_eq!((one.size, one.input_size), (stream.len() as u64, input.len() as u64));
            let mut again = Vec::new();
            Decoder::new(Compression::Gzip, &stream[..], 2000, 0).read_to_end(&mut again).unwrap();
            prop_assert!(again == input);
        }
    }

    #[test]
    fn the_header_names_no_time_no_file_and_no_system() {
        assert_eq!(compress(b"", 2).1[..10], HEADER);
    }

    #[test]
    fn an_error_of_the_sink_ends_the_compression() {
        let input = vec![7; 40 << 20];
        let mut pieces = 0;
        let error = gzip(&input[..], Hasher::sha256(), 2, |_| {
            pieces += 1;
            if pieces == 3 {
                Err(io::ErrorKind::BrokenPipe.into())
            } else {
                Ok(())
            }
        })
        .unwrap_err();
        assert_eq!((error.kind(), pieces), (io::ErrorKind::BrokenPipe, 3));
    }

    /// Golden: a change of the encoder must be noticed, since it changes every new layer's digest.
    #[test]
    fn the_encoder_is_the_one_that_is_named() {
        let input: Vec<u8> = (0..3_000_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        assert_eq!(
            (COMPRESSOR, compress(&input, 3).0.digest.short()),
            ("zlib-rs/0.6/2/512KiB", "707db0ec4df7")
        );
    }
}
